// Package auth holds the mechanisms behind signing in: password hashes, signed
// session tokens, personal access tokens and rate limits.
//
// It decides nothing about who may do what and stores nothing: agent.Instance
// combines these parts with the accounts in system.duckdb.
package auth

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"
	"golang.org/x/text/unicode/norm"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// argon2id parameters for new hashes: the second choice of RFC 9106 lowered to
// the 46 MiB that the OWASP password storage cheat sheet names for one pass.
// Stored hashes carry their own parameters, so these can be raised at any time.
const (
	argonTime    = 1
	argonMemory  = 46 * 1024 // KiB
	argonThreads = 1
	saltBytes    = 16
	keyBytes     = 32
)

// MinPassword is the least number of characters of a password.
const MinPassword = 10

// Passwords hashes and checks passwords. Each hash costs 46 MiB, so only a few
// run at once and only a few more wait: a flood of sign-ins is refused instead
// of taking the machine's memory.
type Passwords struct {
	running chan struct{}
	waiting chan struct{}
	decoy   string // costs what a new hash costs and is nobody's
}

// NewPasswords returns a hasher that runs at most concurrent hashes at once.
func NewPasswords(concurrent int) *Passwords {
	return &Passwords{
		running: make(chan struct{}, concurrent),
		waiting: make(chan struct{}, concurrent*16),
		// A random key, for computing a real one would take a third of the
		// instance's start. Checking against it costs the same.
		decoy: phc(randomBytes(saltBytes), randomBytes(keyBytes)),
	}
}

// Hash returns the encoded argon2id hash of a new password, or a
// problem.Unprocessable when the password is too weak to store.
func (p *Passwords) Hash(ctx context.Context, password redact.Secret) (redact.Secret, error) {
	text := norm.NFC.String(password.Reveal())
	if utf8.RuneCountInString(text) < MinPassword {
		return "", problem.New(problem.Unprocessable,
			fmt.Sprintf("The password is shorter than %d characters.", MinPassword),
			"Send a longer password.").WithCode("weak_password")
	}
	release, err := p.enter(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	return redact.Secret(encode(text)), nil
}

// Matches reports whether password fits the encoded hash. For an account that
// does not exist or has no password, pass an empty hash: the check then takes
// as long as any other and fails.
func (p *Passwords) Matches(ctx context.Context, hash, password redact.Secret) (bool, error) {
	known := hash != ""
	if !known {
		hash = redact.Secret(p.decoy)
	}
	release, err := p.enter(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	ok, err := compare(hash.Reveal(), norm.NFC.String(password.Reveal()))
	return ok && known, err
}

func (p *Passwords) enter(ctx context.Context) (release func(), err error) {
	select {
	case p.waiting <- struct{}{}:
	default:
		return nil, problem.New(problem.RateLimited, "Too many sign-ins are being checked at once.", "Try again in a few seconds.")
	}
	defer func() { <-p.waiting }()
	select {
	case p.running <- struct{}{}:
		return func() { <-p.running }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func encode(password string) string {
	salt := randomBytes(saltBytes)
	return phc(salt, argon2.IDKey([]byte(password), salt, argonTime, argonMemory, argonThreads, keyBytes))
}

// phc writes a hash of the current parameters in the PHC string format.
func phc(salt, key []byte) string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s",
		argon2.Version, argonMemory, argonTime, argonThreads, b64.EncodeToString(salt), b64.EncodeToString(key))
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails: crypto/rand ends the process instead
	return b
}

func compare(hash, password string) (bool, error) {
	fields := strings.Split(hash, "$")
	if len(fields) != 6 || fields[1] != "argon2id" {
		return false, errors.New("the stored password hash is not argon2id in PHC format")
	}
	var version int
	var memory, passes uint32
	var threads uint8
	if _, err := fmt.Sscanf(fields[2], "v=%d", &version); err != nil || version != argon2.Version {
		return false, fmt.Errorf("the stored password hash has version %q, expected %d", fields[2], argon2.Version)
	}
	if _, err := fmt.Sscanf(fields[3], "m=%d,t=%d,p=%d", &memory, &passes, &threads); err != nil || passes < 1 || threads < 1 {
		return false, fmt.Errorf("the stored password hash has unreadable parameters %q", fields[3])
	}
	salt, err := base64.RawStdEncoding.DecodeString(fields[4])
	if err != nil {
		return false, fmt.Errorf("the stored password hash's salt: %w", err)
	}
	want, err := base64.RawStdEncoding.DecodeString(fields[5])
	if err != nil || len(want) == 0 {
		return false, errors.New("the stored password hash's key cannot be read")
	}
	got := argon2.IDKey([]byte(password), salt, passes, memory, threads, uint32(len(want)))
	return subtle.ConstantTimeCompare(got, want) == 1, nil
}
