package sim

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
)

// page is what a proxy says when nobody is behind it.
const page = "<!doctype html><title>Welcome to nginx!</title><h1>Welcome to nginx!</h1>"

// answer is an instance's HTTP.
func (s *Sim) answer(w http.ResponseWriter, r *http.Request) {
	s.probes.Add(1)
	i, _ := r.Context().Value(indexKey{}).(int)
	state := s.State(i)
	if state.spoil(w, r, s.done) {
		return
	}
	h := health(i, state)
	switch {
	case r.Method != http.MethodGet:
		http.Error(w, "a poll never writes", http.StatusMethodNotAllowed)
	case r.URL.Path == "/api/health":
		send(w, state.Fault, h)
	case r.URL.Path == "/api/health/details" && r.Header.Get("Authorization") != "Bearer "+Token:
		w.WriteHeader(http.StatusUnauthorized)
	case r.URL.Path == "/api/health/details":
		send(w, state.Fault, details(i, h))
	default:
		http.NotFound(w, r)
	}
}

// spoil answers as a fault does and reports whether it has.
func (s State) spoil(w http.ResponseWriter, r *http.Request, done <-chan struct{}) bool {
	wait := func(d time.Duration) bool {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			return true
		case <-r.Context().Done():
		case <-done:
		}
		return false
	}
	typed := func(media, body string) bool {
		w.Header().Set("Content-Type", media)
		_, _ = io.WriteString(w, body)
		return true
	}
	switch s.Fault {
	case Silent:
		wait(time.Hour)
		panic(http.ErrAbortHandler)
	case SlowStart:
		return !wait(300 * time.Millisecond)
	case Trickle:
		w.Header().Set("Content-Type", "application/json")
		for wait(20 * time.Millisecond) {
			if _, err := io.WriteString(w, " "); err != nil || http.NewResponseController(w).Flush() != nil {
				break
			}
		}
		panic(http.ErrAbortHandler)
	case Cut:
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", "4000")
		_, _ = io.WriteString(w, `{"status":"healthy","version":"2026.`)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case Huge:
		return typed("application/json", `{"status":"healthy","version":"2026.04.1","commit":"`+strings.Repeat("a", 2<<20)+`"}`)
	case Page:
		return typed("text/html", page)
	case BadGate:
		w.WriteHeader(http.StatusBadGateway)
		return typed("text/html", page)
	case Redirect:
		http.Redirect(w, r, "https://login.example.com/start?ticket=secret", http.StatusFound)
		return true
	case NotJSON:
		return typed("application/json", "{status: healthy}")
	case List:
		return typed("application/json", `["healthy"]`)
	case NoStatus:
		return typed("application/json", `{"version":"2026.04.1"}`)
	case OddStatus:
		return typed("application/json", `{"status":"fine","version":"2026.04.1"}`)
	case NoVersion:
		return typed("application/json", `{"status":"healthy"}`)
	default:
		return false
	}
}

func health(i int, s State) api.Health {
	h := api.Health{
		Status: api.Healthy, Version: s.Version, Channel: s.Channel, SchemaVersion: 7, Commit: fmt.Sprintf("%040x", sha256.Sum256([]byte(s.Version)))[:40],
		Timestamp: time.Now().UTC(), Phase: "serving", Warnings: append([]string{}, s.Warnings...),
		Update: api.Update{Deprecated: s.Deprecated},
		Services: map[string]api.ServiceHealth{
			"state":   {Status: api.Healthy, Detail: "system.duckdb takes writes."},
			"tables":  {Status: api.Healthy, Detail: fmt.Sprintf("%d tables are published.", i%40)},
			"disk":    {Status: api.Healthy, Detail: "41 GB are free."},
			"queries": {Status: api.Healthy, Detail: "Two workers are ready."},
		},
	}
	if s.Deprecated {
		h.Warnings = append(h.Warnings, "Running deprecated version "+s.Version+". Update to stable.")
		h.Update.Latest = "2026.04.8"
	}
	switch s.Fault {
	case SaysDegraded, SaysUnhealthy:
		h.Status = string(s.Fault)
		h.Services["disk"] = api.ServiceHealth{Status: string(s.Fault), Detail: "11 MB are free.", Hint: "Free some space below DATA_DIR."}
		h.Warnings = append(h.Warnings, "disk: 11 MB are free.")
	case SkewedClock:
		h.Timestamp = h.Timestamp.Add(-time.Hour)
	}
	return h
}

func details(i int, h api.Health) api.HealthDetails {
	synced := h.Timestamp.Add(-time.Duration(i%600) * time.Second)
	return api.HealthDetails{
		Health: h, Tables: i % 40, StaleTables: []api.StaleTable{}, Generation: int64(i), Isolation: "landlock",
		Sources:     []api.SourceHealth{{Name: "crm", LastSync: &synced, Status: api.JobSucceeded}},
		Disk:        api.Disk{TotalBytes: 100 << 30, FreeBytes: 41 << 30},
		ImageDigest: fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(h.Version))), ConfigHash: "5f1d7a84db00d2fc", BundleVersion: h.Version,
	}
}

func send(w http.ResponseWriter, f Fault, v any) {
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if f == MediaType {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	}
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	_, _ = w.Write(b.Bytes())
}
