package offsite

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Codes of what goes wrong with a target. Each has its own next step.
const (
	CodeCredentials = "backup_target_credentials" // the target refuses who we are, or what we may do
	CodeMissing     = "backup_target_missing"     // the bucket or folder does not exist
	CodeNoSpace     = "backup_target_full"        // disk full or quota reached
	CodeUnreachable = "backup_target_unreachable" // network, DNS, or the service is down: may pass
	CodeHostKey     = "backup_target_host_key"    // an SSH server shows another key than the pinned one
	CodeClock       = "backup_target_clock"       // the target finds our clock too far from its own
	CodeDamaged     = "backup_target_damaged"     // what arrived is not what was sent
	CodeExists      = "backup_exists"             // the name is taken
	CodeNoObject    = "backup_not_found"          // nothing has this name
)

// Fault makes the error of a target for one of the codes. The cause is kept
// for the log without the URL of its request, which may carry a signature.
func Fault(code string, err error, message, hint string) *problem.Error {
	kinds := map[string]problem.Kind{
		CodeCredentials: problem.Forbidden,
		CodeMissing:     problem.NotFound,
		CodeNoSpace:     problem.NoSpace,
		CodeUnreachable: problem.Unavailable,
		CodeHostKey:     problem.Refused,
		CodeClock:       problem.Refused,
		CodeDamaged:     problem.Unavailable, // sending it again may help
		CodeExists:      problem.Conflict,
		CodeNoObject:    problem.NotFound,
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return problem.Wrap(err, kinds[code], message, hint).WithCode(code)
}

// HasCode reports whether err carries a code.
func HasCode(err error, code string) bool {
	p, ok := errors.AsType[*problem.Error](err)
	return ok && p.Code == code
}

// Connection reports whether an error is one of the network: nothing is known
// about the target but that it could not be talked to.
func Connection(err error) bool {
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)
}

// Backoff is how often, and how far apart, something is tried again. The zero
// value is the standard: 7 attempts over about half a minute.
type Backoff struct {
	Attempts int           // 7
	First    time.Duration // before the second attempt: 500 ms, doubled from then on, up to half of it random
	Most     time.Duration // 15 s
	Wait     func(context.Context, time.Duration) error
}

// Retry calls f until it succeeds, fails for good, or was tried often enough.
// It tries again what is problem.Unavailable, RateLimited or Timeout, after as
// long as the target asks for.
func (b Backoff) Retry(ctx context.Context, f func() error) error {
	attempts, delay, most, wait := b.Attempts, b.First, b.Most, b.Wait
	if attempts == 0 {
		attempts = 7
	}
	if delay == 0 {
		delay = 500 * time.Millisecond
	}
	if most == 0 {
		most = 15 * time.Second
	}
	if wait == nil {
		wait = pause.For
	}
	for attempt := 1; ; attempt++ {
		err := f()
		if err == nil || attempt == attempts || !Transient(err) || ctx.Err() != nil {
			return err
		}
		pausing := delay/2 + rand.N(delay/2+1) //nolint:gosec // spreads callers, hides nothing
		if p := problem.As(err); p.RetryAfter > 0 {
			pausing = min(p.RetryAfter, time.Minute)
		}
		if wait(ctx, pausing) != nil {
			return err
		}
		delay = min(2*delay, most)
	}
}

// Transient reports whether the same call may work in a moment.
func Transient(err error) bool {
	return problem.Is(err, problem.Unavailable) || problem.Is(err, problem.RateLimited) || problem.Is(err, problem.Timeout)
}

// Chunks reads r to its end in pieces of chunk bytes and hands each on with its
// offset; last is true for the final piece, which may be empty only where r is.
// A piece stays as it is until the next, so that it can be sent again. It is an
// error where r does not hold exactly size bytes.
func Chunks(r io.Reader, size int64, chunk int, send func(offset int64, piece []byte, last bool) error) error {
	buf := make([]byte, min(int64(chunk), max(size, 1)))
	for offset := int64(0); ; {
		want := min(int64(len(buf)), size-offset)
		if _, err := io.ReadFull(r, buf[:want]); err != nil {
			return short(err, size)
		}
		last := offset+want == size
		if last {
			if n, _ := io.ReadFull(r, make([]byte, 1)); n > 0 {
				return short(errors.New("there is more"), size)
			}
		}
		if err := send(offset, buf[:want], last); err != nil {
			return err
		}
		if last {
			return nil
		}
		offset += want
	}
}

func short(err error, size int64) error {
	if p, ok := errors.AsType[*problem.Error](err); ok {
		return p
	}
	return problem.Wrap(err, problem.Internal, "Expected "+plural(size)+" to upload, found that the local file gives another number",
		"Verify the local backup: agnes backup verify ID")
}
