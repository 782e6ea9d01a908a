// Package alert tells people of incidents: by a webhook that Slack, Mattermost and
// others understand, by a signed one for programs, by e-mail, by a Telegram bot, or
// by an issue on GitHub.
//
// A Message has an ID that stays the same however often it is sent. A receiver
// that remembers it hears of everything exactly once: the signed webhook carries
// it in a header, an e-mail is known by it, an issue is looked for by it before it
// is opened. Slack and Telegram know nothing of the kind: a message to them comes
// twice where the monitor dies, or the answer is lost, between its arrival and the
// note of it.
//
// Whether a message that failed should be sent again, and when, is said by Error.
package alert

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// Message is what a channel is sent at once.
type Message struct {
	ID     string
	Thread string // of the message that this one follows; a channel without threads has none
	Open   int    // incidents of the thread that are still open
	Items  []Item
	Test   bool   // nothing has happened: somebody looks whether messages arrive
	News   string // a step of a rollout, neither the begin of an incident nor its end; without Items

	Attempts int // that failed before this one
}

// Item is the begin or the end of an incident.
type Item struct {
	Incident string     `json:"incident"` // its id
	Name     string     `json:"name"`     // of the instance; empty for the monitor itself
	Kind     fleet.Kind `json:"kind"`
	Event    Event      `json:"event"`
	Opened   time.Time  `json:"opened"`
	Closed   time.Time  `json:"closed,omitzero"`
	Summary  string     `json:"summary"`
	Hint     string     `json:"hint,omitempty"`
	Ending   string     `json:"ending,omitempty"`
	Link     string     `json:"link,omitempty"` // page of the instance
}

// Event is what happened to an incident.
type Event string

// The events.
const (
	Opened Event = "opened"
	Closed Event = "closed"
)

// Sink takes messages to where people read them.
type Sink interface {
	// Send returns when the message has arrived, with an address at which people
	// find it, where there is one. An error that is no *Error may be sent again.
	Send(ctx context.Context, m Message) (link string, err error)
}

// Error is why a message did not arrive.
type Error struct {
	Why   string        // without secrets: an address may be one
	After time.Duration // the receiver asks to wait so long; zero where it does not say
	Final bool          // the same message will fail again
}

// Error returns why.
func (e *Error) Error() string { return e.Why }

// Issues is a code host's list of issues; release/github is one.
type Issues interface {
	Alert(ctx context.Context, a release.Alert) (url string, err error)
	Settle(ctx context.Context, marker, line string) (url string, err error)
}

// Options are what sinks need of the world.
type Options struct {
	HTTP   *http.Client                                                         // nil: one with a timeout of 20 seconds, which follows no redirect
	Issues func(repo, api string, token redact.Secret) (Issues, error)          // of github
	Dial   func(ctx context.Context, network, address string) (net.Conn, error) // of email; net.Dialer's when nil
	Roots  *x509.CertPool                                                       // of email; the system's when nil
	Now    func() time.Time                                                     // of signatures; time.Now when nil
}

// Channel is a sink with whom and what it tells of.
type Channel struct {
	fleet.Alert
	Sink Sink
}

// Threads reports whether the end of an incident has to go where its beginning
// went.
func (c Channel) Threads() bool { return c.Type == fleet.AlertGitHub }

// Channels makes the channels of an inventory. Secrets are read when they are
// used: one that is missing keeps its message waiting, and no other.
func Channels(alerts []fleet.Alert, o Options) []Channel {
	if o.HTTP == nil {
		// A redirect is a login page, which says 200, or another host, which the message
		// and its secrets are not for.
		o.HTTP = &http.Client{Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	channels := make([]Channel, len(alerts))
	for i, a := range alerts {
		channels[i] = Channel{Alert: a, Sink: sink(a, o)}
	}
	return channels
}

func sink(a fleet.Alert, o Options) Sink {
	switch a.Type {
	case fleet.AlertSlack:
		return slack{a, o}
	case fleet.AlertWebhook:
		return webhook{a, o}
	case fleet.AlertEmail:
		return email{a, o}
	case fleet.AlertTelegram:
		return telegram{a, o}
	default:
		return issues{a, o}
	}
}

// shown bounds how many items a text lists.
const shown = 20

// Title is a message in a line.
func (m Message) Title() string {
	if m.Test {
		return "Test message of the fleet's monitor"
	}
	if m.News != "" {
		return m.News
	}
	if len(m.Items) == 1 {
		return m.Items[0].title()
	}
	opened, closed := m.count()
	switch {
	case closed == 0:
		return fmt.Sprintf("%d new incidents", opened)
	case opened == 0:
		return fmt.Sprintf("%d incidents are over", closed)
	}
	return fmt.Sprintf("new incidents: %d, over: %d", opened, closed)
}

func (m Message) count() (opened, closed int) {
	for _, i := range m.Items {
		if i.Event == Closed {
			closed++
		} else {
			opened++
		}
	}
	return opened, closed
}

// about names what an item is about.
func (i Item) about() string { return cmp.Or(i.Name, "The monitor") }

func (i Item) title() string {
	if i.Event == Closed {
		return fmt.Sprintf("%s: %s is over", i.about(), i.Kind)
	}
	return fmt.Sprintf("%s: %s", i.about(), i.Kind)
}

// line is an item with all that fits into one; an instance's words, which are in it,
// do not make another.
func (i Item) line() string {
	if i.Event == Closed {
		text := fmt.Sprintf("%s: %s is over after %s.", i.about(), i.Kind, lasted(i.Closed.Sub(i.Opened)))
		return oneLine(joined(text, i.Ending))
	}
	return oneLine(joined(fmt.Sprintf("%s: %s since %s.", i.about(), i.Kind, i.Opened.UTC().Format("2006-01-02 15:04:05 UTC")), i.Summary, i.Hint))
}

// oneLine makes a space of what is a line's end, or nothing to see, to some reader.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, text)
}

// joined puts sentences behind each other.
func joined(sentences ...string) string {
	var all []string
	for _, s := range sentences {
		if s = strings.TrimSpace(s); s != "" {
			all = append(all, s)
		}
	}
	return strings.Join(all, " ")
}

func lasted(d time.Duration) string {
	if d < time.Minute {
		return d.Round(time.Second).String()
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}

// lines are the items in plain text, one each, with a word about those that do
// not fit.
func (m Message) lines(render func(Item) string) []string {
	if m.Test {
		return []string{"Nothing has happened. Messages of the fleet's monitor arrive here."}
	}
	if m.News != "" {
		return []string{m.News}
	}
	var all []string
	for n, i := range m.Items {
		if n == shown {
			all = append(all, more(len(m.Items)-n))
			break
		}
		all = append(all, render(i))
	}
	return all
}

func more(n int) string { return fmt.Sprintf("and %d more: agnesctl fleet history", n) }

// Text is a message in plain text.
func (m Message) Text() string {
	lines := m.lines(func(i Item) string { return joined(i.line(), i.Link) })
	if len(lines) == 1 && !m.Test {
		return lines[0]
	}
	return m.Title() + "\n" + strings.Join(lines, "\n")
}

// clip bounds text to a number of bytes.
func clip(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most-3], "") + "…"
}

// secretOf reads what the inventory only names.
func secretOf(t fleet.Token) (redact.Secret, error) {
	value, err := t.Read()
	if err != nil {
		return "", &Error{Why: err.Error()} // it may be mended while the message waits
	}
	return value, nil
}

// answer is what a call brought; the text is bounded.
type answer struct {
	status int
	header http.Header
	text   string
}

// post makes a call.
func (o Options) post(ctx context.Context, address redact.Secret, body io.Reader, header http.Header) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address.Reveal(), body)
	if err != nil {
		return answer{}, &Error{Why: "the address of the channel cannot be used"} // err shows it
	}
	req.Header = header
	req.Header.Set("User-Agent", "agnes-fleet")
	resp, err := o.HTTP.Do(req)
	if err != nil {
		return answer{}, &Error{Why: withoutURL(err)}
	}
	defer func() { _ = resp.Body.Close() }()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // a part of it says enough
	return answer{resp.StatusCode, resp.Header, string(text)}, nil
}

// withoutURL is the reason of a failed call: the address in it may be a secret.
func withoutURL(err error) string {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return "no answer: " + err.Error()
}

// failed is an answer that is none of success. What is wrong with the request
// itself will be wrong the next time.
func (a answer) failed() *Error {
	e := &Error{Why: fmt.Sprintf("HTTP %d: %s", a.status, clip(strings.TrimSpace(a.text), 200)), After: retryAfter(a.header)}
	switch s := a.status; {
	case s == http.StatusRequestTimeout, s == http.StatusTooEarly, s == http.StatusTooManyRequests, s >= 500:
	case s == http.StatusUnauthorized, s == http.StatusForbidden, s == http.StatusNotFound, s == http.StatusGone, s >= 300 && s < 400:
		// The channel is set up wrongly, which people mend; the message is good.
	default:
		e.Final = true
	}
	return e
}

// retryAfter reads RFC 9110's header in both its forms.
func retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.Atoi(text); err == nil && seconds > 0 {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}
