package auth_test

import (
	"context"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/keboola/agnes-the-ai-analyst/agent/auth"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

func TestAPasswordMatchesItsOwnHashOnly(t *testing.T) {
	t.Parallel()
	p := auth.NewPasswords(2)
	hash, err := p.Hash(t.Context(), "correct horse battery")
	if err != nil {
		t.Fatal(err)
	}
	if text := hash.Reveal(); !strings.HasPrefix(text, "$argon2id$") || strings.Contains(text, "horse") {
		t.Errorf("Hash() = %q, want an argon2id PHC string", text)
	}
	for _, tc := range []struct {
		name           string
		hash, password redact.Secret
		want           bool
	}{
		{"the right password", hash, "correct horse battery", true},
		{"a wrong password", hash, "correct horse batterz", false},
		{"an account without a password", "", "correct horse battery", false},
	} {
		got, err := p.Matches(t.Context(), tc.hash, tc.password)
		if err != nil || got != tc.want {
			t.Errorf("%s: Matches() = %v, %v, want %v", tc.name, got, err, tc.want)
		}
	}
	if _, err := p.Matches(t.Context(), "$2a$10$bcrypt", "x"); err == nil {
		t.Error("a hash in a foreign format: want an error")
	}
	if _, err := p.Hash(t.Context(), "short"); !problem.Is(err, problem.Unprocessable) {
		t.Errorf("Hash(short) = %v, want problem.Unprocessable", err)
	}
}

// Not parallel: it reads what the whole process allocates.
func TestAnUnknownAccountCostsWhatAKnownOneDoes(t *testing.T) {
	p := auth.NewPasswords(1)
	hash, err := p.Hash(t.Context(), "correct horse battery")
	if err != nil {
		t.Fatal(err)
	}
	// argon2id's work is its memory, which does not depend on the machine.
	cost := func(hash redact.Secret) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := p.Matches(t.Context(), hash, "wrong horse battery"); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	known, unknown := cost(hash), cost("")
	if known < 46<<20 || unknown < known-known/100 || unknown > known+known/100 {
		t.Errorf("checking a password took %d bytes for an account and %d for none, want the same and at least 46 MiB", known, unknown)
	}
}

func TestComposedAndDecomposedPasswordsAreOne(t *testing.T) {
	t.Parallel()
	p := auth.NewPasswords(1)
	hash, err := p.Hash(t.Context(), "p\u00e1ssword-long")
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := p.Matches(t.Context(), hash, "pa\u0301ssword-long"); err != nil || !ok {
		t.Errorf("Matches() = %v, %v, want true for the same text in another Unicode form", ok, err)
	}
}

func TestAFloodOfSignInsIsRefused(t *testing.T) {
	t.Parallel()
	p := auth.NewPasswords(1)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	refused := make(chan struct{}, 100)
	for range 100 {
		wg.Go(func() {
			if _, err := p.Matches(ctx, "", "whatever it is"); problem.Is(err, problem.RateLimited) {
				refused <- struct{}{}
			}
		})
	}
	<-refused
	cancel()
	wg.Wait()
}

func TestASessionTokenWorksOnlyWhereAndWhileItShould(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 4, 9, 12, 0, 0, 0, time.UTC)
	s := auth.NewSessions("0123456789abcdef0123456789abcdef", "one")
	token, want, err := s.Sign("u1", 3, now)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Verify(token, now.Add(time.Hour))
	if err != nil || got != want {
		t.Fatalf("Verify() = %+v, %v, want %+v", got, err, want)
	}

	unsigned, err := jwt.NewWithClaims(jwt.SigningMethodNone, jwt.MapClaims{
		"iss": "agnes:one", "aud": auth.Audience, "sub": "u1", "jti": "x", "exp": now.Add(time.Hour).Unix(),
	}).SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	longer, err := jwt.NewWithClaims(jwt.SigningMethodHS512, jwt.MapClaims{
		"iss": "agnes:one", "aud": auth.Audience, "sub": "u1", "jti": "x", "exp": now.Add(time.Hour).Unix(),
	}).SignedString([]byte("0123456789abcdef0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	eternal, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"iss": "agnes:one", "aud": auth.Audience, "sub": "u1", "jti": "x",
	}).SignedString([]byte("0123456789abcdef0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, token string
		by          *auth.Sessions
		at          time.Time
	}{
		{"after it expired", token, s, now.Add(auth.SessionLifetime + time.Minute)},
		{"on another instance with the same key", token, auth.NewSessions("0123456789abcdef0123456789abcdef", "two"), now},
		{"under another key", token, auth.NewSessions("fedcba9876543210fedcba9876543210", "one"), now},
		{"with its signature cut off", token[:strings.LastIndex(token, ".")+1], s, now},
		{"unsigned", unsigned, s, now},
		{"with another algorithm", longer, s, now},
		{"without an expiry", eternal, s, now},
		{"as rubbish", "a.b.c", s, now},
		{"empty", "", s, now},
	} {
		if _, err := tc.by.Verify(tc.token, tc.at); !problem.Is(err, problem.Unauthenticated) {
			t.Errorf("%s: Verify() = %v, want problem.Unauthenticated", tc.name, err)
		}
	}
}

func TestLimiterAllowsABurstThenATrickle(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 4, 9, 12, 0, 0, 0, time.UTC)
	l := auth.NewLimiter(3, time.Minute)
	for i := range 3 {
		if ok, _ := l.Allow("a", now); !ok {
			t.Fatalf("attempt %d was refused within the burst", i+1)
		}
	}
	if ok, wait := l.Allow("a", now); ok || wait <= 0 || wait > time.Minute {
		t.Errorf("Allow() = %v, %v after the burst, want a refusal with up to a minute to wait", ok, wait)
	}
	if ok, _ := l.Allow("b", now); !ok {
		t.Error("another key was refused")
	}
	if ok, _ := l.Allow("a", now.Add(time.Minute)); !ok {
		t.Error("refused after the wait")
	}
	l.Reset("a")
	if ok, _ := l.Allow("a", now.Add(time.Minute)); !ok {
		t.Error("refused after a reset")
	}
}

func TestLimiterForgetsIdleKeysButNotBusyOnes(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 4, 9, 12, 0, 0, 0, time.UTC)
	l := auth.NewLimiter(1, time.Minute)
	for i := range 20_000 {
		l.Allow(string(rune(i))+"-key", now)
	}
	if ok, _ := l.Allow("fresh", now); ok {
		t.Error("a full table let an unknown key in, want a refusal")
	}
	if ok, _ := l.Allow("fresh", now.Add(2*time.Minute)); !ok {
		t.Error("refused although the others are idle by now")
	}
}

func TestAccessTokensAreRecognisedAndDiffer(t *testing.T) {
	t.Parallel()
	a, b := auth.NewAccessToken(), auth.NewAccessToken()
	if a.Reveal() == b.Reveal() || !auth.IsAccessToken(a.Reveal()) || auth.HashToken(a) == auth.HashToken(b) {
		t.Error("two new access tokens must differ and carry the prefix")
	}
}
