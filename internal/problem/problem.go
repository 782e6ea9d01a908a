// Package problem is the one error type that people see.
//
// An Error says what kind of failure it is, what happened in a sentence for a
// person, and, in Hint, the exact next command or call. The HTTP server sends
// it as RFC 9457 problem details, the typed client turns those details back
// into an Error, and the command lines map its Kind to a documented exit code.
// So a message written once, at the place that knows the facts, reaches a
// person the same way through every door.
package problem

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Kind classifies a failure. Its text is the default `code` on the wire.
type Kind string

// The kinds, with the HTTP status and the exit code that each maps to.
const (
	Invalid         Kind = "invalid"              // 400, exit 1: the request cannot be understood
	Unauthenticated Kind = "unauthenticated"      // 401, exit 1
	Forbidden       Kind = "forbidden"            // 403, exit 1
	NotFound        Kind = "not_found"            // 404, exit 1
	NotAllowed      Kind = "method_not_allowed"   // 405, exit 1
	Timeout         Kind = "timeout"              // 408, exit 1
	Conflict        Kind = "conflict"             // 409, exit 4
	TooLarge        Kind = "too_large"            // 413, exit 1
	Unprocessable   Kind = "unprocessable"        // 422, exit 1: understood, but a value cannot be used
	RateLimited     Kind = "rate_limited"         // 429, exit 1
	Internal        Kind = "internal"             // 500, exit 1
	Unavailable     Kind = "unavailable"          // 503, exit 1
	NoSpace         Kind = "insufficient_storage" // 507, exit 1

	Usage        Kind = "usage"        // exit 2: the command line is wrong
	Found        Kind = "found"        // exit 3: a check ran and found problems
	Refused      Kind = "refused"      // 409, exit 4: a guard stopped the action
	Inconclusive Kind = "inconclusive" // exit 5: neither pass nor fail could be shown
)

// Error is a failure with its next step.
type Error struct {
	Kind    Kind
	Code    string // stable identifier for programs; Kind's text when empty
	Message string // what was expected, what was found, where
	Hint    string // the exact next command or call
	Err     error  // wrapped cause; logged, never sent to a caller

	RetryAfter time.Duration // when the same call may work; zero where that is unknown
}

// New returns an Error without a cause.
func New(kind Kind, message, hint string) *Error {
	return &Error{Kind: kind, Message: message, Hint: hint}
}

// Wrap returns an Error that keeps err as its cause.
func Wrap(err error, kind Kind, message, hint string) *Error {
	return &Error{Kind: kind, Message: message, Hint: hint, Err: err}
}

// WithCode returns a copy of e with its wire code set.
func (e *Error) WithCode(code string) *Error {
	c := *e
	c.Code = code
	return &c
}

// Error returns the message and, where there is one, the cause.
func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %v", e.Message, e.Err)
	}
	return e.Message
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// WireCode returns the code for programs.
func (e *Error) WireCode() string {
	if e.Code != "" {
		return e.Code
	}
	return string(e.Kind)
}

// As returns the Error in err's chain. An error that is none becomes an
// Internal one with a message that gives nothing away.
func As(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{
		Kind:    Internal,
		Message: "The instance met an error that it does not know.",
		Hint:    "Look for this request in the server's log, then report it with that line.",
		Err:     err,
	}
}

// Is reports whether err's chain holds an Error of this kind.
func Is(err error, kind Kind) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Kind == kind
}

// Status returns the HTTP status of a kind.
func (k Kind) Status() int {
	switch k {
	case Invalid, Usage:
		return http.StatusBadRequest
	case Unauthenticated:
		return http.StatusUnauthorized
	case Forbidden:
		return http.StatusForbidden
	case NotFound:
		return http.StatusNotFound
	case NotAllowed:
		return http.StatusMethodNotAllowed
	case Timeout:
		return http.StatusRequestTimeout
	case Conflict, Refused:
		return http.StatusConflict
	case TooLarge:
		return http.StatusRequestEntityTooLarge
	case Unprocessable, Found:
		return http.StatusUnprocessableEntity
	case RateLimited:
		return http.StatusTooManyRequests
	case Unavailable, Inconclusive:
		return http.StatusServiceUnavailable
	case NoSpace:
		return http.StatusInsufficientStorage
	default:
		return http.StatusInternalServerError
	}
}

// FromStatus returns the kind that a status stands for, for answers of servers
// that send no code.
func FromStatus(status int) Kind {
	for _, k := range []Kind{
		Invalid, Unauthenticated, Forbidden, NotFound, NotAllowed, Timeout, Conflict,
		TooLarge, Unprocessable, RateLimited, Unavailable, NoSpace,
	} {
		if k.Status() == status {
			return k
		}
	}
	if status >= 400 && status < 500 {
		return Invalid
	}
	return Internal
}

// ExitCode returns the process exit code of err: 0 ok, 1 failed, 2 usage,
// 3 a check found problems, 4 refused by a guard, 5 inconclusive.
func ExitCode(err error) int {
	if err == nil {
		return 0
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return 1
	}
	switch e.Kind {
	case Usage:
		return 2
	case Found:
		return 3
	case Conflict, Refused:
		return 4
	case Inconclusive:
		return 5
	default:
		return 1
	}
}
