package release

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Who writes the tag objects. The same everywhere, so that people can tell them
// from tags made by hand.
const (
	TaggerName  = "release-bot"
	TaggerEmail = "release-bot@users.noreply.github.com"
)

// Where the ledger's refs are. Tags are for people to see; what lies below
// refs/agnes/ is an index over them that a listing alone can answer from: it
// points at the same tag objects.
const (
	tagRefs      = "refs/tags/"
	claimRefs    = "refs/agnes/claims/"   // <channel>/<commit>: the one claim of that pair
	verdictRefs  = "refs/agnes/verdicts/" // <version>/<verdict>
	deprecations = "deprecated/"          // tag names
	verdicts     = "verdict/"
)

// Ledger is the book of releases: who claimed which number, what was found out
// about it, and what should no longer be used. All of it is refs, which are
// created once and never moved or deleted. It holds no state of its own.
type Ledger struct {
	refs Refs
	opts LedgerOptions
}

// LedgerOptions are a ledger's surroundings; all have defaults.
type LedgerOptions struct {
	Run  string           // identifies the run in what it writes (default "manual")
	Now  func() time.Time // default time.Now
	Log  *slog.Logger     // default: nothing is logged
	Wait func(ctx context.Context, d time.Duration) error
}

// NewLedger returns the ledger that lies in refs.
func NewLedger(refs Refs, o LedgerOptions) *Ledger {
	if o.Run == "" {
		o.Run = "manual"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Wait == nil {
		o.Wait = pause.For
	}
	return &Ledger{refs: refs, opts: o}
}

// entry is the message of a tag object.
type entry struct {
	subject  string
	body     string
	trailers []trailer
}

type trailer struct{ key, value string }

const (
	trailerChannel     = "Channel"
	trailerCommit      = "Commit"
	trailerVerdict     = "Verdict"
	trailerReplacement = "Replacement"
	trailerRun         = "Run"
	trailerNonce       = "Nonce"
)

// sign adds what makes this very call's object recognizable: without it, two
// runs in one second write the same bytes and each believes that it won.
func (l *Ledger) sign(e entry) (signed entry, nonce string) {
	raw := make([]byte, 8)
	_, _ = rand.Read(raw) // never fails; see its documentation
	nonce = hex.EncodeToString(raw)
	e.trailers = append(e.trailers, trailer{trailerRun, l.opts.Run}, trailer{trailerNonce, nonce})
	return e, nonce
}

func (e entry) String() string {
	var b strings.Builder
	b.WriteString(e.subject)
	b.WriteString("\n\n")
	if body := strings.TrimSpace(e.body); body != "" {
		b.WriteString(body)
		b.WriteString("\n\n")
	}
	for _, t := range e.trailers {
		if t.value != "" {
			fmt.Fprintf(&b, "%s: %s\n", t.key, strings.Join(strings.Fields(t.value), " "))
		}
	}
	return strings.TrimRight(b.String(), "\n")
}

// parseEntry never fails: what is no entry has no trailers.
func parseEntry(message string) entry {
	message = strings.TrimSpace(strings.ReplaceAll(message, "\r\n", "\n"))
	subject, rest, _ := strings.Cut(message, "\n")
	e := entry{subject: subject}
	last := rest
	if i := strings.LastIndex(rest, "\n\n"); i >= 0 {
		e.body, last = strings.TrimSpace(rest[:i]), rest[i+2:]
	}
	for line := range strings.SplitSeq(strings.TrimSpace(last), "\n") {
		if key, value, ok := strings.Cut(line, ": "); ok {
			e.trailers = append(e.trailers, trailer{key, value})
		}
	}
	return e
}

func (e entry) get(key string) string {
	for _, t := range e.trailers {
		if t.key == key {
			return t.value
		}
	}
	return ""
}

// Patience with a place that does not answer, and with other writers.
const (
	maxTrouble = 8    // failures in a row
	maxLost    = 1000 // races lost in a row: each of them was won by somebody
	firstPause = 100 * time.Millisecond
	maxPause   = 5 * time.Second
	maxAsked   = 2 * time.Minute // longest Retry-After that is waited for

	firstWindow = 100 * time.Millisecond
	maxWindow   = 4 * time.Second
)

// patience counts what went wrong in one call, and waits.
type patience struct {
	l             *Ledger
	what          string
	trouble, lost int
}

// lostRace waits a moment: other writers are at work.
func (p *patience) lostRace(ctx context.Context) error {
	p.lost++
	p.trouble = 0
	if p.lost > maxLost {
		return problem.New(problem.Conflict, fmt.Sprintf("expected to %s, lost the race for a free name %d times", p.what, maxLost), "repeat the command: nothing was done")
	}
	// Anything between nothing and a window that doubles: a crowd spreads until
	// there is room for one write after the other.
	window := min(firstWindow<<min(p.lost, 10), maxWindow)
	return p.l.opts.Wait(ctx, mathrand.N(window)) //nolint:gosec // spreads waiting times; nothing depends on it being secret
}

// after waits before the next attempt, or returns why there must be none.
func (p *patience) after(ctx context.Context, err error) error {
	if ctx.Err() != nil || !retryable(err) {
		return err
	}
	p.trouble++
	delay := jitter(min(firstPause<<p.trouble, maxPause))
	if e, ok := errors.AsType[*problem.Error](err); ok && e.RetryAfter > 0 {
		if e.RetryAfter > maxAsked {
			return err
		}
		delay = e.RetryAfter + jitter(firstPause)
	}
	if p.trouble > maxTrouble {
		return problem.Wrap(err, problem.Inconclusive, fmt.Sprintf("expected to %s, failed %d times in a row", p.what, p.trouble),
			"repeat the command: it finds what was done and goes on from there")
	}
	p.l.opts.Log.Info("trying again", "what", p.what, "attempt", p.trouble, "pause", delay, "err", err)
	return p.l.opts.Wait(ctx, delay)
}

// retryable reports whether the same call may work a moment later.
func retryable(err error) bool {
	if errors.Is(err, ErrUncertain) {
		return true
	}
	e, ok := errors.AsType[*problem.Error](err)
	return ok && (e.Kind == problem.Unavailable || e.Kind == problem.RateLimited || e.Kind == problem.Timeout)
}

// jitter returns d/2 to d, so that those who collided do not meet again.
func jitter(d time.Duration) time.Duration {
	return d/2 + mathrand.N(d/2+1) //nolint:gosec // spreads waiting times; nothing depends on it being secret
}

// writeOnce creates the tag name with its index ref, or finds the one that is
// there. Created is true when the object is this call's own, though its reply
// may have been lost.
func (l *Ledger) writeOnce(ctx context.Context, name, commit string, e entry, index ...string) (t Tag, created bool, err error) {
	e, nonce := l.sign(e)
	t = Tag{Name: name, Commit: commit, Message: e.String(), At: l.opts.Now().UTC().Truncate(time.Second)}
	p := patience{l: l, what: "write " + name}
	for {
		made, err := l.refs.Create(ctx, t, index...)
		if err == nil {
			return made, true, nil
		}
		if errors.Is(err, ErrExists) || errors.Is(err, ErrUncertain) {
			found, finding := l.refs.Find(ctx, tagRefs+name)
			switch {
			case finding == nil && parseEntry(found.Message).get(trailerNonce) == nonce:
				return found, true, l.mend(ctx, found, index...)
			case finding == nil:
				return found, false, nil
			case !errors.Is(finding, ErrNotFound):
				err = finding
			case errors.Is(err, ErrExists) && len(index) > 0:
				// The index is taken and the tag is not: one of another entry that says
				// the same. The tag comes without it.
				index = nil
				continue
			}
		}
		if err := p.after(ctx, err); err != nil {
			return Tag{}, false, err
		}
	}
}

// mend points index refs at an entry whose writing was interrupted.
func (l *Ledger) mend(ctx context.Context, t Tag, index ...string) error {
	for _, ref := range index {
		p := patience{l: l, what: "write " + ref}
		for {
			err := l.refs.Point(ctx, ref, t)
			if err == nil || errors.Is(err, ErrExists) {
				break
			}
			if err := p.after(ctx, err); err != nil {
				return err
			}
		}
	}
	return nil
}
