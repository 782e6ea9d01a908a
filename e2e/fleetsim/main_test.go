package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/e2e/fleetsim/sim"
)

func TestTheProgramServesAFleetThatCanBeChanged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	in, end := io.Pipe()
	out, said := io.Pipe()
	var stderr bytes.Buffer
	code := make(chan int)
	go func() {
		code <- run(t.Context(), []string{"-n", "3", "-dir", dir, "-stdin"}, in, said, &stderr)
	}()
	var ready struct{ First, Control string }
	if err := json.NewDecoder(out).Decode(&ready); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true}}
	get := func(method, url, body string) (string, error) {
		req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		if err != nil {
			return "", err
		}
		resp, err := client.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		return fmt.Sprint(resp.StatusCode, " ", string(answer)), err
	}
	if answer, err := get("GET", ready.First+"/api/health", ""); err != nil || !strings.HasPrefix(answer, `200 {"status":"healthy","version":"2026.04.`) {
		t.Errorf("%s %v", answer, err)
	}
	for _, tt := range []struct{ method, path, body, want string }{
		{"PUT", "/instances/0", `{"version":"2026.05.1","fault":"degraded"}`, `200 {"fault":"degraded","version":"2026.05.1"`},
		{"PUT", "/instances/0", `{"fault":"nonsense"}`, "409 expected one of the faults"},
		{"PUT", "/instances/0", `{"fault":"drop"}`, "409 drop and refuse"},
		{"PUT", "/instances/3", `{}`, "404 "},
		{"POST", "/instances/1/restart?for=0s&version=2026.05.2", "", "202 "},
		{"GET", "/stats", "", `200 {"connections":`},
	} {
		if answer, err := get(tt.method, ready.Control+tt.path, tt.body); err != nil || !strings.HasPrefix(answer, tt.want) {
			t.Errorf("%s %s: %s %v, want %s", tt.method, tt.path, answer, err, tt.want)
		}
	}
	if answer, err := get("GET", ready.First+"/api/health", ""); err != nil || !strings.HasPrefix(answer, `200 {"status":"degraded","version":"2026.05.1"`) {
		t.Errorf("it did not change: %s %v", answer, err)
	}
	inventory, err := os.ReadFile(filepath.Join(dir, "fleet.yaml"))
	if err != nil || strings.Count(string(inventory), "- {name: sim-") != 3 || !strings.Contains(string(inventory), ready.First) {
		t.Errorf("%s %v", inventory, err)
	}
	_ = end.Close()
	if c := <-code; c != 0 {
		t.Errorf("it ended with %d: %s", c, &stderr)
	}
}

func TestTheProgramRefusesWhatItCannotDo(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-n", "0"}, {"-mix", "hole=2"}, {"-mix", "hole=0.6,cut=0.6"}, {"-mix", "nonsense=0.1"}, {"-dir", "/nowhere/at/all"}} {
		var stderr bytes.Buffer
		if code := run(t.Context(), append(args, "-stdin"), strings.NewReader(""), io.Discard, &stderr); code != 1 || !strings.HasPrefix(stderr.String(), "fleetsim: ") {
			t.Errorf("%v: %d %s", args, code, &stderr)
		}
	}
}

func TestASeedDecidesTheWholeFleet(t *testing.T) {
	t.Parallel()
	states := func(seed uint64) (all []sim.State) {
		s, err := sim.Start(context.WithoutCancel(t.Context()), sim.Options{N: 500, Seed: seed, Mix: map[sim.Fault]float64{sim.Hole: 0.1, sim.Page: 0.02}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		faults := map[sim.Fault]int{}
		for i := range s.N() {
			all = append(all, s.State(i))
			faults[s.State(i).Fault]++
		}
		if faults[sim.Hole] != 50 || faults[sim.Page] != 10 {
			t.Errorf("%v", faults)
		}
		return all
	}
	one := states(1)
	if !reflect.DeepEqual(one, states(1)) || reflect.DeepEqual(one, states(2)) {
		t.Error("the seed does not decide")
	}
}
