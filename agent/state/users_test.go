package state

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func ptr[T any](v T) *T { return &v }

func TestUserIsFoundByAnySpellingOfTheEmail(t *testing.T) {
	t.Parallel()
	ctx, s := context.Background(), mustOpen(t, t.TempDir())
	u := mustUser(t, s, "  Jos\u0065\u0301@Company.COM ", RoleAnalyst) // e + combining accent
	if u.Email != "jos\u00e9@company.com" {
		t.Errorf("stored e-mail is %q", u.Email)
	}
	got, err := s.UserByEmail(ctx, "JOS\u00c9@company.com")
	if err != nil || got.ID != u.ID {
		t.Fatalf("UserByEmail = %v, %v", got, err)
	}
	if got.Grants == nil || got.PasswordHash.Reveal() != "argon2id$not-a-real-hash" || !got.CreatedAt.Equal(u.CreatedAt) || got.CreatedAt.Location() != time.UTC {
		t.Errorf("read back %+v, stored %+v", got, u)
	}
	_, err = s.CreateUser(ctx, newUser("jos\u00e9@COMPANY.com", RoleAnalyst), By{})
	if p := wantProblem(t, err, problem.Conflict); p.WireCode() != "email_exists" {
		t.Errorf("code %s", p.WireCode())
	}
	for _, bad := range []string{"", "a", "@b", "a@", "a b@c", "a@b\x00", "\xff@b.c", strings.Repeat("x", 300) + "@b.c"} {
		_, err := s.CreateUser(ctx, newUser(bad, RoleAnalyst), By{})
		wantProblem(t, err, problem.Unprocessable)
	}
	_, err = s.CreateUser(ctx, newUser("x@y.z", "root"), By{})
	wantProblem(t, err, problem.Unprocessable, "root")
	_, err = s.UserByID(ctx, "nobody")
	wantProblem(t, err, problem.NotFound, "nobody", "GET /api/users")
}

func TestGrantsDecideWhatAUserSees(t *testing.T) {
	t.Parallel()
	ctx, s := context.Background(), mustOpen(t, t.TempDir())
	u := mustUser(t, s, "a@b.c", RoleAnalyst)
	if u.CanSee("orders") {
		t.Error("a user without grants sees a table")
	}
	u, err := s.UpdateUser(ctx, u.ID, UserPatch{Grants: &[]string{"Orders", "orders", "x"}}, By{})
	if err != nil {
		t.Fatal(err)
	}
	if len(u.Grants) != 2 || !u.CanSee("ORDERS") || u.CanSee("order") {
		t.Errorf("grants %v", u.Grants)
	}
	_, err = s.UpdateUser(ctx, u.ID, UserPatch{Grants: &[]string{`x"; DROP TABLE users`}}, By{})
	wantProblem(t, err, problem.Unprocessable)
	if u, _ = s.UpdateUser(ctx, u.ID, UserPatch{Grants: &[]string{"*"}}, By{}); !u.CanSee("anything") {
		t.Error("* grants nothing")
	}
}

func TestTheLastEnabledAdminStays(t *testing.T) {
	t.Parallel()
	ctx, s := context.Background(), mustOpen(t, t.TempDir())
	one := mustUser(t, s, "one@b.c", RoleAdmin)
	refused := func(err error) {
		t.Helper()
		if p := wantProblem(t, err, problem.Conflict); p.WireCode() != "last_admin" {
			t.Errorf("code %s", p.WireCode())
		}
	}
	all := func(id string) {
		t.Helper()
		_, err := s.UpdateUser(ctx, id, UserPatch{Role: ptr(RoleAnalyst)}, By{})
		refused(err)
		_, err = s.UpdateUser(ctx, id, UserPatch{Disabled: ptr(true)}, By{})
		refused(err)
		refused(s.DeleteUser(ctx, id, By{}))
	}
	all(one.ID)
	two := mustUser(t, s, "two@b.c", RoleAdmin)
	two, err := s.UpdateUser(ctx, two.ID, UserPatch{Disabled: ptr(true)}, By{})
	if err != nil || two.TokenEpoch != 1 {
		t.Fatalf("disable: %+v, %v", two, err)
	}
	all(one.ID) // a disabled admin does not count
	if err := s.DeleteUser(ctx, two.ID, By{}); err != nil {
		t.Errorf("a disabled admin cannot be deleted: %v", err)
	}
	if total, enabled, err := s.CountAdmins(ctx); total != 1 || enabled != 1 || err != nil {
		t.Errorf("CountAdmins = %d, %d, %v", total, enabled, err)
	}
	if u, err := s.UserByID(ctx, one.ID); err != nil || u.Role != RoleAdmin || u.Disabled || u.TokenEpoch != 0 {
		t.Errorf("refused changes left traces: %+v, %v", u, err)
	}
}

func TestSetPasswordEndsSessions(t *testing.T) {
	t.Parallel()
	ctx, s := context.Background(), mustOpen(t, t.TempDir())
	u := mustUser(t, s, "a@b.c", RoleAnalyst)
	got, err := s.SetPassword(ctx, u.ID, "new-hash", By{})
	if err != nil || got.TokenEpoch != 1 || got.PasswordHash.Reveal() != "new-hash" {
		t.Fatalf("%+v, %v", got, err)
	}
	entries, err := s.ListAudit(ctx, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprint(entries); strings.Contains(text, "hash") {
		t.Errorf("the audit log tells of a hash: %s", text)
	}
}

func TestOfManyBootstrapsOneWins(t *testing.T) {
	t.Parallel()
	ctx, s := context.Background(), mustOpen(t, t.TempDir())
	const n = 20
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			_, errs[i] = s.BootstrapAdmin(ctx, newUser(fmt.Sprintf("admin%d@b.c", i), ""), By{})
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if p := wantProblem(t, err, problem.Forbidden); p.WireCode() != "setup_complete" {
			t.Errorf("code %s", p.WireCode())
		}
	}
	users, err := s.ListUsers(ctx)
	if err != nil || won != 1 || len(users) != 1 || users[0].Role != RoleAdmin {
		t.Errorf("%d winners, users %v, %v", won, users, err)
	}
	audit, err := s.ListAudit(ctx, 0, "")
	if err != nil || len(audit) != 1 || audit[0].Action != "user.bootstrap" || audit[0].ActorID != users[0].ID {
		t.Errorf("audit %v, %v", audit, err)
	}
}

func TestAccessTokens(t *testing.T) {
	t.Parallel()
	ctx, dir := context.Background(), t.TempDir()
	s := mustOpen(t, dir)
	u := mustUser(t, s, "a@b.c", RoleAnalyst)
	hash := func(c string) string { return strings.Repeat(c, 64) }
	tok, err := s.CreateToken(ctx, Token{UserID: u.ID, Name: "ci", Role: RoleAnalyst, Hash: hash("a"), Prefix: "agn_a", ExpiresAt: time.Now().Add(time.Hour)}, By{})
	if err != nil {
		t.Fatal(err)
	}
	short, err := s.CreateToken(ctx, Token{UserID: u.ID, Name: "short", Role: RoleAnalyst, Hash: hash("b"), ExpiresAt: time.Now().Add(20 * time.Millisecond)}, By{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.TokenByHash(ctx, hash("a")); err != nil || got != tok {
		t.Errorf("TokenByHash = %+v, %v; want %+v", got, err, tok)
	}
	_, err = s.TokenByHash(ctx, hash("c"))
	wantProblem(t, err, problem.Unauthenticated)
	<-time.After(time.Until(short.ExpiresAt))
	_, err = s.TokenByHash(ctx, hash("b"))
	wantProblem(t, err, problem.Unauthenticated, "expired")
	_, err = s.CreateToken(ctx, Token{UserID: u.ID, Name: "again", Role: RoleAnalyst, Hash: hash("a")}, By{})
	wantProblem(t, err, problem.Conflict)
	_, err = s.CreateToken(ctx, Token{UserID: u.ID, Name: "past", Role: RoleAnalyst, Hash: hash("d"), ExpiresAt: time.Now().Add(-time.Second)}, By{})
	wantProblem(t, err, problem.Unprocessable)
	_, err = s.CreateToken(ctx, Token{UserID: "nobody", Name: "x", Role: RoleAnalyst, Hash: hash("e")}, By{})
	wantProblem(t, err, problem.NotFound)

	before := s.WALBytes()
	for range 100 {
		s.TouchToken(tok.ID)
	}
	if after := s.WALBytes(); after != before {
		t.Errorf("touching a token wrote %d bytes", after-before)
	}
	list, err := s.ListTokens(ctx, u.ID)
	if err != nil || len(list) != 2 || list[1].LastUsedAt.IsZero() {
		t.Fatalf("ListTokens = %+v, %v", list, err)
	}
	wantProblem(t, s.RevokeToken(ctx, tok.ID, "someone else", By{}), problem.NotFound)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, dir)
	if got, err := s.TokenByHash(ctx, hash("a")); err != nil || !got.LastUsedAt.Equal(list[1].LastUsedAt) {
		t.Errorf("after a restart: %+v, %v", got, err)
	}
	if err := s.RevokeToken(ctx, tok.ID, u.ID, By{}); err != nil {
		t.Fatal(err)
	}
	_, err = s.TokenByHash(ctx, hash("a"))
	wantProblem(t, err, problem.Unauthenticated)
	if err := s.DeleteUser(ctx, u.ID, By{}); err != nil {
		t.Fatal(err)
	}
	if list, err := s.ListTokens(ctx, u.ID); err != nil || len(list) != 0 {
		t.Errorf("tokens of a deleted user: %v, %v", list, err)
	}
}

func TestRevokedSessionsSurviveARestartUntilTheyExpire(t *testing.T) {
	t.Parallel()
	ctx, dir := context.Background(), t.TempDir()
	s := mustOpen(t, dir)
	expires := time.Now().Add(time.Hour)
	for range 2 { // idempotent
		if err := s.RevokeSession(ctx, "jti-1", expires, By{Actor: "a@b.c"}); err != nil {
			t.Fatal(err)
		}
	}
	if !s.IsRevoked("jti-1") || s.IsRevoked("jti-2") {
		t.Error("IsRevoked is wrong")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, dir)
	if !s.IsRevoked("jti-1") {
		t.Error("a restart forgot a revoked session")
	}
	if err := s.purgeRevoked(ctx, expires.Add(-time.Minute)); err != nil || !s.IsRevoked("jti-1") {
		t.Errorf("purged too early (%v)", err)
	}
	if err := s.purgeRevoked(ctx, expires.Add(time.Minute)); err != nil || s.IsRevoked("jti-1") {
		t.Errorf("not purged (%v)", err)
	}
}
