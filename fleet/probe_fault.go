package fleet

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// unconnected says why no connection was made.
func (x *exchange) unconnected(ctx context.Context, a *attempt, err error) (Fault, *problem.Error) {
	host := x.t.address
	if f, ours := x.ours(err); ours != nil {
		return f, ours
	}
	late := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil
	limit := min(x.p.o.Connect, x.t.total)
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		hint := "Check the address in the inventory, and the zone that it is in."
		if dns.IsNotFound {
			return FaultDNS, problem.Wrap(err, problem.Unavailable, fmt.Sprintf("Expected an address of %s, found that the name does not exist.", dns.Name), hint)
		}
		return FaultDNS, problem.Wrap(err, problem.Unavailable, fmt.Sprintf("Expected an address of %s, found none: %s.", dns.Name, dns.Err), hint)
	}
	if !a.connected {
		hint := "Check that the machine runs, and the firewall before it."
		if a.proxy != nil {
			host += " through the proxy " + a.proxy.Host
			hint = "Check that the machine runs, and what the proxy says of it: it is HTTPS_PROXY of this machine."
		}
		if late {
			return FaultTimeout, problem.Wrap(err, problem.Timeout, fmt.Sprintf("Expected a connection to %s within %s, found none.", host, limit), hint)
		}
		if a.proxy == nil && refused(err) {
			return FaultConnect, problem.Wrap(err, problem.Unavailable, fmt.Sprintf("Expected a server at %s, found that nothing listens: connection refused.", host), "Start it: agnesctl host status.")
		}
		return FaultConnect, problem.Wrap(err, problem.Unavailable, fmt.Sprintf("Expected a connection to %s, found: %s.", host, root(err)), hint)
	}
	if late {
		return FaultTimeout, problem.Wrap(err, problem.Timeout,
			fmt.Sprintf("Expected a TLS handshake with %s within %s, found a connection on which nothing is said.", host, limit), "Look at the load of the machine and the log of its proxy.")
	}
	return FaultTLS, x.untrusted(err)
}

// untrusted says what is wrong with a handshake or a certificate.
func (x *exchange) untrusted(err error) *problem.Error {
	host, name := x.t.address, x.t.in.TLS.ServerName
	if name == "" {
		name = x.t.base.Hostname()
	}
	found := func(hint, format string, args ...any) *problem.Error {
		return problem.Wrap(err, problem.Unavailable, fmt.Sprintf("Expected a certificate for %s that is trusted, found ", name)+fmt.Sprintf(format, args...)+".", hint)
	}
	verify, isVerify := errors.AsType[*tls.CertificateVerificationError](err)
	if isVerify && len(verify.UnverifiedCertificates) > 0 {
		x.r.CertNotAfter = verify.UnverifiedCertificates[0].NotAfter
	}
	if wrongName, ok := errors.AsType[x509.HostnameError](err); ok {
		c := wrongName.Certificate
		names := append([]string(nil), c.DNSNames...)
		for _, ip := range c.IPAddresses {
			names = append(names, ip.String())
		}
		return found("Set tls.server_name in the inventory, or renew the certificate.", "one for %s", clip(strings.Join(names, ", ")))
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		if invalid.Reason == x509.Expired {
			if c := invalid.Cert; time.Now().Before(c.NotBefore) {
				return found("Check the clocks of both machines.", "one that is valid from %s on", c.NotBefore.UTC().Format(time.RFC3339))
			}
			return found("Renew it: see the log of the proxy that does.", "one that expired at %s", invalid.Cert.NotAfter.UTC().Format(time.RFC3339))
		}
		return found("Renew it.", "an invalid one: %s", invalid)
	}
	if unknown, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		issuer := "nobody"
		if unknown.Cert != nil {
			issuer = clip(unknown.Cert.Issuer.String())
		}
		return found("Give the file of that authority as tls.ca in the inventory, or serve the whole chain.", "one of an unknown authority: %s", issuer)
	}
	if isVerify {
		return found("Renew it.", "another: %s", verify.Err)
	}
	if header, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		what := "something that is not TLS"
		if bytes.HasPrefix(header.RecordHeader[:], []byte("HTTP")) {
			what = "plain HTTP"
		}
		return problem.Wrap(err, problem.Unavailable, fmt.Sprintf("Expected TLS at %s, found %s.", host, what), "Check the port, and https against http in the address.")
	}
	if broke(err) {
		return problem.Wrap(err, problem.Unavailable, fmt.Sprintf("Expected a TLS handshake with %s, found that it closed the connection.", host), "Read the log of the proxy; it may know no certificate for this name.")
	}
	return problem.Wrap(err, problem.Unavailable, fmt.Sprintf("Expected a TLS handshake with %s, found: %s.", host, root(err)), "Read the log of the proxy; it may know no certificate for this name.")
}

// unanswered says why no header of an answer came.
func (x *exchange) unanswered(err error, path string) (Fault, *problem.Error) {
	if f, ours := x.ours(err); ours != nil {
		return f, ours
	}
	call := "GET " + x.t.base.String() + path
	if x.ctx.Err() != nil {
		return FaultTimeout, problem.Wrap(err, problem.Timeout, fmt.Sprintf("Expected an answer to %s within %s, found none.", call, x.t.total), "Look at the load of the machine and the instance's log.")
	}
	if broke(err) {
		return FaultHTTP, problem.Wrap(err, problem.Unavailable, fmt.Sprintf("Expected an answer to %s, found that the connection was closed.", call), "Read the instance's log: it may be restarting.")
	}
	return FaultHTTP, problem.Wrap(err, problem.Unavailable, fmt.Sprintf("Expected an answer to %s, found what is no HTTP: %s.", call, clip(root(err).Error())), "Check the port in the address.")
}

// broken says why an answer has no end.
func (x *exchange) broken(err error, path string, n int) (Fault, *problem.Error) {
	if f, ours := x.ours(err); ours != nil {
		return f, ours
	}
	call := "GET " + x.t.base.String() + path
	if x.ctx.Err() != nil {
		return FaultTimeout, problem.Wrap(err, problem.Timeout,
			fmt.Sprintf("Expected the whole answer to %s within %s, found %d bytes and no end.", call, x.t.total, n), "Look at the load of the machine and the network between.")
	}
	return FaultBody, problem.Wrap(err, problem.Unavailable,
		fmt.Sprintf("Expected the whole answer to %s, found that it breaks off after %d bytes.", call, n), "Check any proxy before the instance.")
}

// ours recognizes what this machine has done, or lacks.
func (x *exchange) ours(err error) (Fault, *problem.Error) {
	if x.outer.Err() != nil {
		return FaultSelf, problem.Wrap(x.outer.Err(), problem.Inconclusive, "The probe was ended before there was an answer.", "Probe again.")
	}
	starved := errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
	if dns, ok := errors.AsType[*net.DNSError](err); ok && !starved {
		// A resolver without descriptors says "no such host".
		starved = strings.Contains(dns.Err, syscall.EMFILE.Error()) || !canOpen()
	}
	switch {
	case starved:
		return FaultSelf, problem.Wrap(err, problem.Unavailable, "This machine has no file descriptors left for a probe.", "Raise the limit (ulimit -n) or lower the concurrency.")
	case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
		return FaultSelf, problem.Wrap(err, problem.Unavailable, fmt.Sprintf("This machine cannot make another connection: %s.", root(err)), "Lower the concurrency.")
	}
	return NoFault, nil
}

func canOpen() bool {
	f, err := os.Open(os.DevNull)
	if err != nil {
		return !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE)
	}
	_ = f.Close()
	return true
}

func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// alive reports whether a dial failed by a word of the other host.
func alive(err error) bool { return refused(err) || errors.Is(err, syscall.ECONNRESET) }

func broke(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, net.ErrClosed)
}

// root returns the innermost error: what lies around it repeats the address.
func root(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// readAnswer returns the JSON of a 200.
func readAnswer[T any](x *exchange, resp *http.Response, path string) (out T, f Fault, wrong *problem.Error) {
	call := "GET " + x.t.base.String() + path
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return out, FaultHTTP, otherStatus(resp, call)
	}
	media := resp.Header.Get("Content-Type")
	if kind, _, err := mime.ParseMediaType(media); err != nil || kind != "application/json" && !strings.HasSuffix(kind, "+json") {
		_ = resp.Body.Close()
		if media == "" {
			media = "nothing about its type"
		}
		return out, FaultBody, problem.New(problem.Unavailable, fmt.Sprintf("Expected application/json from %s, found %s.", call, clip(media)),
			"Check that the address is the instance's and not a proxy's or a login page's.")
	}
	body, f, wrong := x.readBody(resp, path)
	if wrong != nil {
		return out, f, wrong
	}
	if trimmed := bytes.TrimSpace(body); len(trimmed) == 0 || trimmed[0] != '{' {
		return out, FaultBody, problem.New(problem.Unavailable, fmt.Sprintf("Expected a JSON object from %s, found %q.", call, start(trimmed)), "Check any proxy before the instance.")
	}
	if err := json.Unmarshal(body, &out); err != nil {
		return out, FaultBody, problem.Wrap(err, problem.Unavailable, fmt.Sprintf("Expected the JSON of an instance from %s, found %q.", call, start(body)), "Check any proxy before the instance.")
	}
	return out, NoFault, nil
}

func start(body []byte) string {
	if len(body) > 40 {
		return strings.ToValidUTF8(string(body[:40]), "") + "…"
	}
	return string(body)
}

func otherStatus(resp *http.Response, call string) *problem.Error {
	message := fmt.Sprintf("Expected 200 from %s, found %d", call, resp.StatusCode)
	hint := "Check any proxy before the instance."
	switch code := resp.StatusCode; {
	case code >= 300 && code < 400:
		to := "nowhere"
		if u, err := url.Parse(resp.Header.Get("Location")); err == nil && resp.Header.Get("Location") != "" {
			to = clip((&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String())
		}
		message, hint = message+" to "+to, "Use the address that it points to, if that is the instance's."
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		hint = "Let GET " + healthPath + " through whatever asks for a login before the instance."
	case code == http.StatusBadGateway || code == http.StatusServiceUnavailable || code == http.StatusGatewayTimeout:
		hint = "The proxy answers, the instance behind it does not: read its log."
	case code == http.StatusTooManyRequests:
		hint = "Ask less often, or raise the limit of the proxy."
	}
	return problem.New(problem.Unavailable, message+".", hint)
}
