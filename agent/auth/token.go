package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// Audience is the audience of every session token.
const Audience = "agnes-api"

// SessionLifetime is how long a session token works.
const SessionLifetime = 12 * time.Hour

// Sessions signs and checks session tokens: JWTs with one pinned algorithm,
// bound to one instance by their issuer.
type Sessions struct {
	key    []byte
	issuer string
}

// Session is what a valid session token says. Whether the account still exists
// and the session was not revoked is for the caller to check.
type Session struct {
	ID      string // jti
	UserID  string
	Epoch   int64 // the account's token epoch when it was signed
	Expires time.Time
}

type claims struct {
	jwt.RegisteredClaims
	Epoch int64 `json:"epoch"`
}

// NewSessions returns a signer for the instance with this id.
func NewSessions(key redact.Secret, instanceID string) *Sessions {
	return &Sessions{key: []byte(key.Reveal()), issuer: "agnes:" + instanceID}
}

// Sign returns a new token for a user.
func (s *Sessions) Sign(userID string, epoch int64, now time.Time) (string, Session, error) {
	session := Session{ID: rand.Text(), UserID: userID, Epoch: epoch, Expires: now.UTC().Add(SessionLifetime).Truncate(time.Second)}
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims{
		RegisteredClaims: jwt.RegisteredClaims{
			ID:        session.ID,
			Issuer:    s.issuer,
			Subject:   userID,
			Audience:  jwt.ClaimStrings{Audience},
			IssuedAt:  jwt.NewNumericDate(now),
			NotBefore: jwt.NewNumericDate(now.Add(-time.Minute)), // clocks differ
			ExpiresAt: jwt.NewNumericDate(session.Expires),
		},
		Epoch: epoch,
	}).SignedString(s.key)
	return token, session, err
}

// Verify returns what a token says, or problem.Unauthenticated.
func (s *Sessions) Verify(token string, now time.Time) (Session, error) {
	var c claims
	_, err := jwt.ParseWithClaims(token, &c, func(*jwt.Token) (any, error) { return s.key, nil },
		jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}),
		jwt.WithIssuer(s.issuer),
		jwt.WithAudience(Audience),
		jwt.WithExpirationRequired(),
		jwt.WithStrictDecoding(),
		jwt.WithTimeFunc(func() time.Time { return now }),
	)
	if err != nil || c.ID == "" || c.Subject == "" {
		return Session{}, InvalidToken(err)
	}
	return Session{ID: c.ID, UserID: c.Subject, Epoch: c.Epoch, Expires: c.ExpiresAt.UTC()}, nil
}

// InvalidToken is the answer to every token that does not work, whatever the
// reason, so that it tells an attacker nothing.
func InvalidToken(cause error) error {
	return problem.Wrap(cause, problem.Unauthenticated,
		"The access token is not valid: it is malformed, expired, revoked, or of another instance.",
		`Sign in again: POST /auth/token {"email":"…","password":"…"}, then send Authorization: Bearer TOKEN.`).WithCode("invalid_token")
}

// AccessTokenPrefix begins every personal access token, so that scanners and
// people recognize one.
const AccessTokenPrefix = "agnes_pat_"

// NewAccessToken returns a personal access token of 26 random base32 characters
// (130 bits).
func NewAccessToken() redact.Secret { return redact.Secret(AccessTokenPrefix + rand.Text()) }

// IsAccessToken reports whether a bearer token is a personal access token.
func IsAccessToken(token string) bool { return strings.HasPrefix(token, AccessTokenPrefix) }

// operatorTokenPrefix begins every operator token.
const operatorTokenPrefix = "agnes_operator_"

// NewOperatorToken returns a token of 26 random base32 characters (130 bits) for
// whoever may enter the instance's machine.
func NewOperatorToken() redact.Secret { return redact.Secret(operatorTokenPrefix + rand.Text()) }

// IsOperatorToken reports whether a bearer token is an operator token.
func IsOperatorToken(token string) bool { return strings.HasPrefix(token, operatorTokenPrefix) }

// HashToken returns what is stored of a random token. A plain digest is enough
// where the input has 128 bits of entropy.
func HashToken(token redact.Secret) string {
	sum := sha256.Sum256([]byte(token.Reveal()))
	return hex.EncodeToString(sum[:])
}
