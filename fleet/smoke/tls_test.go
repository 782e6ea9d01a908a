package smoke_test

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke/smoketest"
)

func TestOverRealSockets(t *testing.T) {
	t.Parallel()
	secure := httptest.NewUnstartedServer(smoketest.New())
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	secure.StartTLS()
	defer secure.Close()
	plain := httptest.NewServer(smoketest.New())
	defer plain.Close()
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = nobody.Close()
	roots := x509.NewCertPool()
	roots.AddCert(secure.Certificate())

	for name, tt := range map[string]struct {
		url     string
		tls     *tls.Config
		verdict smoke.Verdict
		step    string
		detail  string
	}{
		"plain":                     {plain.URL, nil, smoke.Pass, "", ""},
		"a trusted authority":       {secure.URL, &tls.Config{RootCAs: roots}, smoke.Pass, "", ""},
		"an unknown authority":      {secure.URL, nil, smoke.Inconclusive, "health", "is not trusted"},
		"another name":              {strings.Replace(secure.URL, "127.0.0.1", "localhost", 1), &tls.Config{RootCAs: roots}, smoke.Inconclusive, "health", "is not trusted"},
		"TLS where there is none":   {strings.Replace(plain.URL, "http:", "https:", 1), nil, smoke.Inconclusive, "health", "No connection"},
		"a port where nobody is in": {"http://" + nobody.Addr().String(), nil, smoke.Fail, "health", "connection refused"},
	} {
		r := smoke.Run(t.Context(), smoke.Options{
			URL: tt.url, TLS: tt.tls, Account: smoke.Account{Email: smoketest.Email, Password: smoketest.Password},
		})
		t.Log(name)
		wants(t, r, tt.verdict, tt.step, tt.detail)
	}
}
