package alert_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"mime"
	"net"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/alert"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/release/github"
	"github.com/keboola/agnes-the-ai-analyst/release/githubtest"
)

const hunter = "hunter2-hunter2"

// channel reads a channel as an inventory has it. $SECRET is hunter, $URL is url.
func channel(t *testing.T, yaml, url string, o alert.Options) alert.Channel {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fleet.yaml")
	if err := os.WriteFile(path, []byte("instances: []\nalerts:\n  - "+yaml+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := fleet.Load(path, fleet.LoadOptions{Getenv: func(name string) string { return map[string]string{"SECRET": hunter, "URL": url}[name] }})
	if err != nil {
		t.Fatal(err)
	}
	return alert.Channels(v.Alerts, o)[0]
}

var opened = time.Date(2026, 4, 12, 10, 15, 0, 0, time.UTC)

func begin(name string) alert.Item {
	return alert.Item{
		Incident: name + "-unreachable-1", Name: name, Kind: fleet.KindUnreachable, Event: alert.Opened, Opened: opened,
		Summary: "Expected an answer from <https://acme.example.com>, found none & waited.", Hint: "Look at its machine.", Link: "https://fleet.example.com/i/" + name,
	}
}

func ending(name string) alert.Item {
	i := begin(name)
	i.Event, i.Closed, i.Ending = alert.Closed, opened.Add(12*time.Minute), "It does its work again."
	return i
}

// receiver is an HTTP server that answers as it is told and keeps what came.
type receiver struct {
	*httptest.Server
	mu      sync.Mutex
	bodies  []string
	headers []http.Header
	paths   []string
}

func receive(t *testing.T, status int, header map[string]string, body string) *receiver {
	t.Helper()
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		content, _ := io.ReadAll(req.Body)
		r.mu.Lock()
		r.bodies, r.headers, r.paths = append(r.bodies, string(content)), append(r.headers, req.Header), append(r.paths, req.URL.Path)
		r.mu.Unlock()
		for name, value := range header {
			w.Header().Set(name, value)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(r.Close)
	return r
}

// failure checks how a message failed.
func failure(t *testing.T, err error, after time.Duration, final bool, texts ...string) {
	t.Helper()
	e, ok := errors.AsType[*alert.Error](err)
	if !ok {
		t.Fatalf("found %v, want an alert.Error", err)
	}
	if e.After != after || e.Final != final {
		t.Errorf("after %s, final %v; want %s, %v: %s", e.After, e.Final, after, final, e.Why)
	}
	for _, text := range texts {
		if !strings.Contains(e.Why, text) {
			t.Errorf("no %q in %q", text, e.Why)
		}
	}
	if strings.Contains(e.Why, hunter) {
		t.Errorf("a secret is shown: %s", e.Why)
	}
}

func TestSlackIsToldInItsOwnMarkUp(t *testing.T) {
	t.Parallel()
	r := receive(t, 200, nil, "ok")
	c := channel(t, "{type: slack, url: '${env:URL}'}", r.URL+"/services/"+hunter, alert.Options{})
	if _, err := c.Sink.Send(t.Context(), alert.Message{ID: "m1", Items: []alert.Item{begin("acme"), ending("bolt")}}); err != nil {
		t.Fatal(err)
	}
	var got struct{ Text string }
	if err := json.Unmarshal([]byte(r.bodies[0]), &got); err != nil {
		t.Fatal(err)
	}
	want := "*new incidents: 1, over: 1*\n" +
		":red_circle: acme: unreachable since 2026-04-12 10:15:00 UTC. Expected an answer from &lt;https://acme.example.com&gt;, found none &amp; waited. Look at its machine. <https://fleet.example.com/i/acme|Show>\n" +
		":large_green_circle: bolt: unreachable is over after 12m. It does its work again. <https://fleet.example.com/i/bolt|Show>"
	if got.Text != want {
		t.Errorf("found\n%s\nwant\n%s", got.Text, want)
	}
}

func TestAMessageAboutManyNamesSomeAndCountsTheRest(t *testing.T) {
	t.Parallel()
	r := receive(t, 200, nil, "ok")
	c := channel(t, "{type: slack, url: '${env:URL}'}", r.URL, alert.Options{})
	m := alert.Message{ID: "m1"}
	for n := range 1000 {
		m.Items = append(m.Items, begin(fmt.Sprintf("acme-%03d", n)))
	}
	if _, err := c.Sink.Send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	var got struct{ Text string }
	_ = json.Unmarshal([]byte(r.bodies[0]), &got)
	if len(got.Text) > 4000 || !strings.Contains(got.Text, "*1000 new incidents*") || !strings.Contains(got.Text, "acme-010") || strings.Contains(got.Text, "acme-020") || !strings.HasSuffix(got.Text, " more: agnesctl fleet history") {
		t.Errorf("%d bytes: %s", len(got.Text), got.Text)
	}
	if text := m.Text(); !strings.Contains(text, "and 980 more: agnesctl fleet history") {
		t.Error(text)
	}
}

func TestSlacksRefusalsSayWhetherToComeAgain(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status int
		header map[string]string
		body   string
		after  time.Duration
		final  bool
	}{
		"too many":                      {429, map[string]string{"Retry-After": "42"}, "", 42 * time.Second, false},
		"a message that is wrong":       {400, nil, "invalid_payload", 0, true},
		"a webhook that was taken away": {404, nil, "no_service", 0, false},
		"a channel that is archived":    {410, nil, "channel_is_archived", 0, false},
		"a server in trouble":           {503, nil, "upstream", 0, false},
		"a redirect":                    {302, nil, "", 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := receive(t, c.status, c.header, c.body)
			s := channel(t, "{type: slack, url: '${env:URL}'}", r.URL+"/services/"+hunter, alert.Options{})
			_, err := s.Sink.Send(t.Context(), alert.Message{ID: "m1", Items: []alert.Item{begin("acme")}})
			failure(t, err, c.after, c.final, fmt.Sprint(c.status), c.body)
		})
	}
}

func TestARedirectIsNoArrival(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 302, 303, 307, 308} {
		login := receive(t, 200, nil, "Please sign in.")
		r := receive(t, status, map[string]string{"Location": login.URL}, "")
		_, err := channel(t, "{type: slack, url: '${env:URL}'}", r.URL, alert.Options{}).Sink.Send(t.Context(), alert.Message{ID: "m1", Items: []alert.Item{begin("acme")}})
		failure(t, err, 0, false, fmt.Sprint(status))
		if len(login.bodies) > 0 {
			t.Errorf("%d: %q was sent on", status, login.bodies)
		}
	}
}

func TestAnInstancesWordsAreNobodyElses(t *testing.T) {
	t.Parallel()
	evil := begin("acme")
	evil.Summary = "x\n:large_green_circle: bank: unreachable is over\u2028\u0085@channel ![](http://evil.example.com/p) [here](http://evil.example.com) #12 <!channel>"
	m := alert.Message{ID: "m1", Thread: "m1", Open: 2, Items: []alert.Item{evil, begin("bolt")}}
	r := receive(t, 200, nil, "ok")
	if _, err := channel(t, "{type: slack, url: '${env:URL}'}", r.URL, alert.Options{}).Sink.Send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	var got struct{ Text string }
	_ = json.Unmarshal([]byte(r.bodies[0]), &got)
	s := githubtest.New(t)
	repo := s.Repo("acme/fleet")
	if _, err := issueChannel(t, s, time.Minute).Sink.Send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	for where, c := range map[string]struct {
		text  string
		lines int
	}{"slack": {got.Text, 3}, "plain": {m.Text(), 3}, "issue": {repo.Issues()[0].Body, 5}} {
		if n := strings.Count(strings.TrimSpace(c.text), "\n") + 1; n != c.lines || strings.ContainsAny(c.text, "\u2028\u0085") {
			t.Errorf("%s has %d lines, want %d: %q", where, n, c.lines, c.text)
		}
		for _, call := range []string{"@channel", "](http://evil", "<!channel>"} {
			if where != "plain" && strings.Contains(c.text, call) {
				t.Errorf("%s has %s: %q", where, call, c.text)
			}
		}
	}
	if body := repo.Issues()[0].Body; strings.Contains(body, "#12") {
		t.Errorf("another issue is mentioned: %q", body)
	}
}

func TestAFailedCallShowsNoAddress(t *testing.T) {
	t.Parallel()
	r := receive(t, 200, nil, "ok")
	r.Close()
	s := channel(t, "{type: slack, url: '${env:URL}'}", r.URL+"/services/"+hunter, alert.Options{})
	_, err := s.Sink.Send(t.Context(), alert.Message{ID: "m1", Items: []alert.Item{begin("acme")}})
	failure(t, err, 0, false, "no answer", "refused")
	s = channel(t, "{type: slack, url: '${env:GONE}'}", "", alert.Options{})
	_, err = s.Sink.Send(t.Context(), alert.Message{ID: "m1", Items: []alert.Item{begin("acme")}})
	failure(t, err, 0, false, "the variable GONE is not set")
}

func TestASignedWebhookIsBelievedForFiveMinutes(t *testing.T) {
	t.Parallel()
	r := receive(t, 204, nil, "")
	now := time.Date(2026, 4, 12, 10, 16, 0, 0, time.UTC)
	c := channel(t, "{type: webhook, url: '"+r.URL+"/hook', secret: '${env:SECRET}'}", "", alert.Options{Now: func() time.Time { return now }})
	if _, err := c.Sink.Send(t.Context(), alert.Message{ID: "m1", Items: []alert.Item{begin("acme"), ending("bolt")}}); err != nil {
		t.Fatal(err)
	}
	body, header, key := []byte(r.bodies[0]), r.headers[0], []byte(hunter)
	if header.Get("Agnes-Delivery") != "m1" || header.Get("Agnes-Timestamp") != "1775988960" {
		t.Errorf("headers are %v", header)
	}
	var p alert.Payload
	if err := json.Unmarshal(body, &p); err != nil || p.ID != "m1" || len(p.Items) != 2 || p.Items[0] != begin("acme") || p.Items[1] != ending("bolt") {
		t.Errorf("the body is %s: %v", body, err)
	}
	other := header.Clone()
	other.Set("Agnes-Timestamp", "1775988961")
	for name, c := range map[string]struct {
		key    []byte
		header http.Header
		body   []byte
		now    time.Time
		want   bool
	}{
		"as it came":            {key, header, body, now, true},
		"four minutes later":    {key, header, body, now.Add(4 * time.Minute), true},
		"six minutes later":     {key, header, body, now.Add(6 * time.Minute), false},
		"from the future":       {key, header, body, now.Add(-6 * time.Minute), false},
		"with another key":      {[]byte("x"), header, body, now, false},
		"with another body":     {key, header, append([]byte(" "), body...), now, false},
		"with another time":     {key, other, body, now, false},
		"without any signature": {key, http.Header{}, body, now, false},
	} {
		if got := alert.Verify(c.key, c.header, c.body, c.now); got != c.want {
			t.Errorf("%s: believed %v, want %v", name, got, c.want)
		}
	}
}

func TestTelegramSaysInTheBodyWhetherACallWorked(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status int
		body   string
		after  time.Duration
		final  bool
		ok     bool
	}{
		"it worked":              {200, `{"ok":true,"result":{}}`, 0, false, true},
		"a failure behind 200":   {200, `{"ok":false,"error_code":500,"description":"Internal Server Error"}`, 0, false, false},
		"too many":               {429, `{"ok":false,"error_code":429,"description":"Too Many Requests: retry after 17","parameters":{"retry_after":17}}`, 17 * time.Second, false, false},
		"no such chat":           {400, `{"ok":false,"error_code":400,"description":"Bad Request: chat not found"}`, 0, false, false},
		"a message that is long": {400, `{"ok":false,"error_code":400,"description":"Bad Request: message is too long"}`, 0, true, false},
		"a group that has moved": {400, `{"ok":false,"error_code":400,"description":"Bad Request: group chat was upgraded","parameters":{"migrate_to_chat_id":-1009}}`, 0, false, false},
		"a wrong token":          {401, `{"ok":false,"error_code":401,"description":"Unauthorized"}`, 0, false, false},
		"a proxy's page":         {502, `<html>Bad Gateway</html>`, 0, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := receive(t, c.status, nil, c.body)
			s := channel(t, "{type: telegram, token: '${env:SECRET}', chat: '-100123', api: '"+r.URL+"'}", "", alert.Options{})
			_, err := s.Sink.Send(t.Context(), alert.Message{ID: "m1", Items: []alert.Item{begin("acme")}})
			if r.paths[0] != "/bot"+hunter+"/sendMessage" || !strings.Contains(r.bodies[0], `"chat_id":"-100123"`) {
				t.Errorf("%s got %s", r.paths[0], r.bodies[0])
			}
			if c.ok {
				if err != nil {
					t.Error(err)
				}
				return
			}
			failure(t, err, c.after, c.final)
		})
	}
}

// mailServer speaks as much SMTP as a client can meet.
type mailServer struct {
	net.Listener
	tls     *tls.Config
	starts  bool   // it offers STARTTLS
	refuse  string // "RCPT 550 no such user": what it says to a command
	mu      sync.Mutex
	texts   []string
	secured []bool
	signed  []string
}

func newMailServer(t *testing.T) (*mailServer, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mail"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(parsed)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &mailServer{Listener: l, starts: true, tls: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}}
	t.Cleanup(func() { _ = l.Close() })
	return s, roots
}

func (s *mailServer) serve(implicit bool) {
	for {
		conn, err := s.Accept()
		if err != nil {
			return
		}
		if implicit {
			conn = tls.Server(conn, s.tls)
		}
		go s.talk(conn, implicit)
	}
}

func (s *mailServer) talk(conn net.Conn, secured bool) {
	defer func() { _ = conn.Close() }()
	in := bufio.NewReader(conn)
	say := func(text string) { _, _ = io.WriteString(conn, text+"\r\n") }
	say("220 mail.example.com ESMTP")
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if at, answer, found := strings.Cut(s.refuse, " "); found && (at == word || at == word+strings.TrimPrefix(rest, "TO")) {
			say(answer)
			continue
		}
		switch word {
		case "EHLO":
			say("250-mail.example.com")
			if s.starts && !secured {
				say("250-STARTTLS")
			}
			say("250 AUTH PLAIN")
		case "STARTTLS":
			say("220 go on")
			up := tls.Server(conn, s.tls)
			conn, in, secured = up, bufio.NewReader(up), true
		case "AUTH":
			plain, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(rest, "PLAIN "))
			s.mu.Lock()
			s.signed = append(s.signed, string(plain))
			s.mu.Unlock()
			say("235 welcome")
		case "DATA":
			say("354 go on")
			var text strings.Builder
			for {
				line, err := in.ReadString('\n')
				if err != nil {
					return
				}
				if line == ".\r\n" {
					break
				}
				text.WriteString(line)
			}
			if at, answer, found := strings.Cut(s.refuse, " "); found && at == "." {
				say(answer)
				continue
			}
			s.mu.Lock()
			s.texts, s.secured = append(s.texts, text.String()), append(s.secured, secured)
			s.mu.Unlock()
			say("250 taken")
		case "QUIT":
			return // without a word, as some do
		default:
			say("250 ok")
		}
	}
}

const mailYAML = "{type: email, server: '%s', user: robot, password: '${env:SECRET}', from: fleet@example.com, to: [a@example.com, b@example.com], tls: %s}"

func TestMailIsSentUnderTLSWithAnIDOfItsOwn(t *testing.T) {
	t.Parallel()
	for _, security := range []string{"starttls", "tls"} {
		t.Run(security, func(t *testing.T) {
			t.Parallel()
			s, roots := newMailServer(t)
			go s.serve(security == "tls")
			c := channel(t, fmt.Sprintf(mailYAML, s.Addr(), security), "", alert.Options{Roots: roots})
			if _, err := c.Sink.Send(t.Context(), alert.Message{ID: "m1", Items: []alert.Item{begin("ácme")}}); err != nil {
				t.Fatal(err)
			}
			if len(s.texts) != 1 || !s.secured[0] || s.signed[0] != "\x00robot\x00"+hunter {
				t.Fatalf("found %q, secured %v, signed in as %q", s.texts, s.secured, s.signed)
			}
			m, err := mail.ReadMessage(strings.NewReader(s.texts[0]))
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(base64.NewDecoder(base64.StdEncoding, m.Body))
			if err != nil || !strings.Contains(string(body), "ácme: unreachable since 2026-04-12 10:15:00 UTC.") {
				t.Errorf("the body is %q: %v", body, err)
			}
			subject, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject"))
			if err != nil || subject != "[fleet] ácme: unreachable" || m.Header.Get("Message-Id") != "<m1@example.com>" || m.Header.Get("To") != "a@example.com, b@example.com" {
				t.Errorf("the header is %v: %v", m.Header, err)
			}
		})
	}
}

func TestAMailServersRefusalsSayWhetherToComeAgain(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		refuse string
		starts bool
		final  bool
		text   string
	}{
		"come again later":     {"RCPT 451 greylisted", true, false, `a@example.com: 451 "greylisted" b@example.com: 451 "greylisted"`},
		"nobody of the name":   {"RCPT 550 no such user", true, false, "550"},
		"a wrong password":     {"AUTH 535 no", true, false, "535"},
		"it is taken for spam": {". 554 spam", true, true, "554"},
		"a full disk":          {". 452 no space", true, false, "452"},
		"no TLS":               {"", false, false, "nothing was sent in the clear"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, roots := newMailServer(t)
			s.refuse, s.starts = c.refuse, c.starts
			go s.serve(false)
			sink := channel(t, fmt.Sprintf(mailYAML, s.Addr(), "starttls"), "", alert.Options{Roots: roots}).Sink
			_, err := sink.Send(t.Context(), alert.Message{ID: "m1", Items: []alert.Item{begin("acme")}})
			failure(t, err, 0, c.final, c.text)
			if len(s.texts)+len(s.signed) > 0 && !c.starts {
				t.Error("something was sent in the clear")
			}
		})
	}
}

func TestARecipientWhoIsGoneKeepsNothingFromTheOthers(t *testing.T) {
	t.Parallel()
	s, roots := newMailServer(t)
	s.refuse = "RCPT:<b@example.com> 550 no such user"
	go s.serve(false)
	sink := channel(t, fmt.Sprintf(mailYAML, s.Addr(), "starttls"), "", alert.Options{Roots: roots}).Sink
	if _, err := sink.Send(t.Context(), alert.Message{ID: "m1", Items: []alert.Item{begin("acme")}}); err != nil || len(s.texts) != 1 {
		t.Errorf("%d messages: %v", len(s.texts), err)
	}
	_, err := sink.Send(t.Context(), alert.Message{ID: "m2", Test: true})
	failure(t, err, 0, false, `b@example.com: 550 "no such user"`)
}

func TestAMailServerThatIsNotWhoItShouldBeHearsNothing(t *testing.T) {
	t.Parallel()
	s, _ := newMailServer(t)
	go s.serve(false)
	sink := channel(t, fmt.Sprintf(mailYAML, s.Addr(), "starttls"), "", alert.Options{Roots: x509.NewCertPool()}).Sink
	_, err := sink.Send(t.Context(), alert.Message{ID: "m1", Items: []alert.Item{begin("acme")}})
	failure(t, err, 0, false, "certificate")
	if len(s.signed) > 0 {
		t.Error("it was told the password")
	}
}

func TestAMailServerThatIsSilentIsLeft(t *testing.T) {
	t.Parallel()
	s, roots := newMailServer(t)
	go func() {
		if conn, err := s.Accept(); err == nil {
			defer func() { _ = conn.Close() }()
			_, _ = io.Copy(io.Discard, conn)
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	o := alert.Options{Roots: roots, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		cancel() // it will never speak
		return conn, err
	}}
	sink := channel(t, fmt.Sprintf(mailYAML, s.Addr(), "starttls"), "", o).Sink
	_, err := sink.Send(ctx, alert.Message{ID: "m1", Items: []alert.Item{begin("acme")}})
	failure(t, err, 0, false, "the mail server")
}

// issueChannel is a channel to a repository of a fake GitHub, whose clock jumps
// over waits.
func issueChannel(t *testing.T, s *githubtest.Server, maxWait time.Duration) alert.Channel {
	t.Helper()
	return channel(t, "{type: github, repo: acme/fleet, token: '${env:SECRET}', labels: [incident], api: '"+s.URL+"'}", "", alert.Options{
		Issues: func(repo, api string, token redact.Secret) (alert.Issues, error) {
			if token.Reveal() != hunter {
				t.Errorf("the token is %q", token.Reveal())
			}
			return github.New(github.Options{Repo: repo, API: api, Token: githubtest.Token, MaxWait: maxWait, Sleep: func(context.Context, time.Duration) error { return nil }})
		},
	})
}

func TestAnIncidentIsOneIssueFromItsBeginToItsEnd(t *testing.T) {
	t.Parallel()
	s := githubtest.New(t)
	repo := s.Repo("acme/fleet")
	c := issueChannel(t, s, time.Minute)
	send := func(m alert.Message) string {
		t.Helper()
		link, err := c.Sink.Send(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	first := alert.Message{ID: "m1", Thread: "m1", Open: 1, Items: []alert.Item{begin("acme")}}
	link := send(first)
	if again := send(first); again != link || len(repo.Issues()) != 1 {
		t.Errorf("sent again it is at %s and not %s; there are %d issues", again, link, len(repo.Issues()))
	}
	if i := repo.Issues()[0]; i.Title != "Fleet: acme: unreachable" || i.State != "open" || !strings.Contains(i.Body, "&lt;https://acme.example.com>") || len(i.Labels) != 1 {
		t.Errorf("the issue is %+v", i)
	}
	last := alert.Message{ID: "m2", Thread: "m1", Items: []alert.Item{ending("acme")}}
	send(last)
	last.Attempts = 1 // its answer was lost
	send(last)
	if i := repo.Issues()[0]; i.State != "closed" || strings.Count(i.Body, "is over after 12m") != 1 {
		t.Errorf("the issue is %+v", i)
	}
}

func TestAnIssueOfManyIsClosedWithTheLastOfThem(t *testing.T) {
	t.Parallel()
	s := githubtest.New(t)
	repo := s.Repo("acme/fleet")
	c := issueChannel(t, s, time.Minute)
	for i, m := range []alert.Message{
		{ID: "m1", Thread: "m1", Open: 2, Items: []alert.Item{begin("acme"), begin("bolt")}},
		{ID: "m2", Thread: "m1", Open: 1, Items: []alert.Item{ending("acme")}},
		{ID: "m3", Thread: "m1", Open: 0, Items: []alert.Item{ending("bolt")}},
	} {
		if _, err := c.Sink.Send(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		want := "open"
		if i == 2 {
			want = "closed"
		}
		if all := repo.Issues(); len(all) != 1 || all[0].State != want {
			t.Errorf("after message %d: %+v", i+1, all)
		}
	}
}

// unlisted is a code host whose lists are behind.
type unlisted struct{ alert.Issues }

func (unlisted) Settle(context.Context, string, string) (string, error) { return "", nil }

func TestAnIssueThatIsNotListedYetIsLookedForOnceMore(t *testing.T) {
	t.Parallel()
	c := channel(t, "{type: github, repo: acme/fleet, token: '${env:SECRET}'}", "", alert.Options{
		Issues: func(string, string, redact.Secret) (alert.Issues, error) { return unlisted{}, nil },
	})
	m := alert.Message{ID: "m2", Thread: "m1", Items: []alert.Item{ending("acme")}}
	_, err := c.Sink.Send(t.Context(), m)
	failure(t, err, 10*time.Second, false, "not listed")
	m.Attempts = 1
	if _, err := c.Sink.Send(t.Context(), m); err != nil { // people close issues, too
		t.Error(err)
	}
}

func TestGitHubsLimitsAreToldToTheCourier(t *testing.T) {
	t.Parallel()
	s := githubtest.New(t)
	s.Repo("acme/fleet")
	s.Inject(githubtest.Fault{Method: "POST", Path: "*/issues", Times: 1, Status: 403, Header: http.Header{"Retry-After": {"300"}}, Body: map[string]any{"message": "You have exceeded a secondary rate limit."}})
	c := issueChannel(t, s, time.Minute)
	m := alert.Message{ID: "m1", Thread: "m1", Open: 1, Items: []alert.Item{begin("acme")}}
	_, err := c.Sink.Send(t.Context(), m)
	failure(t, err, 5*time.Minute, false, "rate limit")
	if _, err := c.Sink.Send(t.Context(), m); err != nil {
		t.Error(err)
	}
}

func TestATestMessageSaysThatNothingHasHappened(t *testing.T) {
	t.Parallel()
	r := receive(t, 200, nil, "ok")
	c := channel(t, "{type: slack, url: '${env:URL}'}", r.URL, alert.Options{})
	if _, err := c.Sink.Send(t.Context(), alert.Message{ID: "m1", Test: true}); err != nil || !strings.Contains(r.bodies[0], "Nothing has happened.") {
		t.Errorf("%s: %v", r.bodies, err)
	}
	s := githubtest.New(t)
	repo := s.Repo("acme/fleet")
	if _, err := issueChannel(t, s, time.Minute).Sink.Send(t.Context(), alert.Message{ID: "m1", Test: true}); err != nil || len(repo.Issues()) != 1 || repo.Issues()[0].State != "closed" {
		t.Errorf("%+v: %v", repo.Issues(), err)
	}
}
