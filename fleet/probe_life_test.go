package fleet_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

// selfSigned makes a certificate of example.com, and what trusts it.
func selfSigned(t *testing.T, notAfter time.Time) (*tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"example.com"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}))
}

func TestACertificateIsLookedAtAgainThoughTheConnectionIsKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		month := time.Now().AddDate(0, 1, 0).UTC().Truncate(time.Second)
		old, trustOld := selfSigned(t, month)
		renewed, trustNew := selfSigned(t, month.AddDate(0, 2, 0))
		foreign, _ := selfSigned(t, month)
		var shown atomic.Pointer[tls.Certificate]
		shown.Store(old)
		listener := &pipes{made: make(chan net.Conn), done: make(chan struct{})}
		server := &http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"status":"healthy","version":"2026.04.7","channel":"stable"}`)
		})}
		go func() {
			_ = server.Serve(tls.NewListener(listener, &tls.Config{NextProtos: []string{"http/1.1"}, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return shown.Load(), nil }}))
		}()
		defer server.Close()
		dials := 0
		p := fleet.NewProber(fleet.ProbeOptions{Dial: func(context.Context, string, string) (net.Conn, error) {
			dials++
			return listener.dial(), nil
		}})
		defer p.Close()
		in := fleet.Instance{Name: "acme", URL: "https://example.com", TLS: fleet.TLS{PEM: trustOld + trustNew}}
		// for an hour, as a monitor asks
		watch := func() (r fleet.Result) {
			for range 120 {
				r = p.One(t.Context(), in)
				<-time.After(30 * time.Second)
			}
			return r
		}
		if r := watch(); !r.Good() || !r.CertNotAfter.Equal(month) {
			t.Fatalf("%+v", r)
		}
		if dials > 7 {
			t.Errorf("%d connections in an hour", dials)
		}
		shown.Store(renewed)
		if r := watch(); !r.Good() || !r.CertNotAfter.Equal(month.AddDate(0, 2, 0)) {
			t.Errorf("an hour after it was renewed: %+v", r)
		}
		shown.Store(foreign)
		if r := watch(); r.Good() {
			t.Errorf("an hour after a foreign one took its place: %+v", r)
		}
	})
}
