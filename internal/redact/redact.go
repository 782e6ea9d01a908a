// Package redact keeps secrets out of logs, errors and answers by their type.
//
// A Secret prints as [redacted] through fmt, slog, encoding/json and YAML. The
// one way to the value is Reveal, so that a reader can find every use of it.
package redact

import (
	"fmt"
	"log/slog"
)

// Placeholder is what every Secret with a value prints as.
const Placeholder = "[redacted]"

// Secret is text that must not be shown. The empty Secret prints as the empty
// string, so that "not set" stays visible.
type Secret string

// Reveal returns the secret's value.
func (s Secret) Reveal() string { return string(s) }

// String returns Placeholder, or nothing for the empty Secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return Placeholder
}

// GoString keeps %#v from showing the value.
func (s Secret) GoString() string { return fmt.Sprintf("redact.Secret(%q)", s.String()) }

// Format covers every verb, %x and %d among them.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// MarshalText serves encoding/json map keys, YAML and flags.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue serves log/slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
