package fleet_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/e2e/fleetsim/sim"
	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

// tunnels is a proxy that refuses the targets that refuse names.
func tunnels(t *testing.T, refuse func(target string) bool) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || refuse(r.Host) {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		there, err := (&net.Dialer{}).DialContext(r.Context(), "tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer func() { _ = there.Close() }()
		here, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = here.Close() }()
		_, _ = io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
		go func() {
			_, _ = io.Copy(there, here)
			_ = there.Close()
		}()
		_, _ = io.Copy(here, there)
	}))
	t.Cleanup(s.Close)
	return s
}

func TestAProxyIsNoInstance(t *testing.T) {
	t.Parallel()
	_, all := simulated(t, sim.Options{N: 4})
	lost := strings.TrimPrefix(all[0].URL, "https://")
	var cut atomic.Bool // the proxy's own way out
	proxy := tunnels(t, func(target string) bool { return cut.Load() || target == lost })
	address, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	p := prober(t, fleet.ProbeOptions{MaxIdle: -1, Proxy: func(*http.Request) (*url.URL, error) { return address, nil }})

	got, sweep := must(t, p, all)
	for _, in := range all[1:] {
		if r := got[in.Name]; !r.Good() {
			t.Fatalf("through the proxy: %+v", r)
		}
	}
	r := got[all[0].Name]
	if r.Reached || r.SelfTrouble || sweep.SelfTrouble != nil || !strings.Contains(r.Err.Message, "through the proxy "+address.Host) {
		t.Errorf("the one that is lost: %+v", r)
	}

	blamed := func(when string) { // as soon as the last sign of life is old
		t.Helper()
		var r fleet.Result
		for until := time.Now().Add(time.Minute); time.Now().Before(until); {
			if r = p.One(t.Context(), all[1]); r.SelfTrouble {
				break
			}
		}
		if !r.SelfTrouble || r.Reached {
			t.Errorf("%s, and an instance is blamed: %+v", when, r)
		}
	}
	cut.Store(true)
	blamed("the proxy has no way out")
	proxy.Close()
	blamed("the proxy is gone")
}
