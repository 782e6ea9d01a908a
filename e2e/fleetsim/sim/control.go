package sim

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

// Control returns the API that changes the fleet while it runs:
//
//	GET  /instances            all: [{"name","url","state"}]
//	PUT  /instances/{i}        a State
//	POST /instances/{i}/restart?for=2s&version=2026.04.9   resets connections for a while, then is back
//	GET  /stats                {"connections","requests","open"}
//	GET  /ca.pem
func (s *Sim) Control() http.Handler {
	mux := http.NewServeMux()
	index := func(w http.ResponseWriter, r *http.Request) (int, bool) {
		i, err := strconv.Atoi(r.PathValue("i"))
		if err != nil || i < 0 || i >= s.n {
			http.Error(w, "there is no such instance", http.StatusNotFound)
			return 0, false
		}
		return i, true
	}
	set := func(w http.ResponseWriter, i int, to State) bool {
		if err := s.Set(i, to); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return false
		}
		return true
	}
	mux.HandleFunc("GET /instances", func(w http.ResponseWriter, _ *http.Request) {
		type one struct {
			Name  string `json:"name"`
			URL   string `json:"url"`
			State State  `json:"state"`
		}
		all := make([]one, s.n)
		for i := range all {
			all[i] = one{s.Name(i), s.URL(i), s.State(i)}
		}
		send(w, None, all)
	})
	mux.HandleFunc("PUT /instances/{i}", func(w http.ResponseWriter, r *http.Request) {
		i, ok := index(w, r)
		if !ok {
			return
		}
		to := s.State(i)
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&to); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if set(w, i, to) {
			send(w, None, to)
		}
	})
	mux.HandleFunc("POST /instances/{i}/restart", func(w http.ResponseWriter, r *http.Request) {
		i, ok := index(w, r)
		if !ok {
			return
		}
		gone, err := time.ParseDuration(r.URL.Query().Get("for"))
		if err != nil || gone < 0 || gone > time.Hour {
			http.Error(w, "expected for=DURATION such as 2s", http.StatusBadRequest)
			return
		}
		back := s.State(i)
		back.Fault = None
		if v := r.URL.Query().Get("version"); v != "" {
			back.Version = v
		}
		away := back
		away.Fault = Reset
		if !set(w, i, away) {
			return
		}
		time.AfterFunc(gone, func() { _ = s.Set(i, back) })
		w.WriteHeader(http.StatusAccepted)
	})
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		connections, requests := s.Counts()
		send(w, None, map[string]int64{"connections": connections, "requests": requests, "open": int64(s.Open())})
	})
	mux.HandleFunc("GET /ca.pem", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(s.CA()) })
	return mux
}
