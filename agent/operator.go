package agent

import (
	"context"
	"crypto/subtle"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/auth"
	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// operatorName is who the operator's calls come from, in the audit log and
// elsewhere. No account can have it: their ids are UUIDs, and their addresses
// have an @.
const operatorName = "operator"

// OperatorToken is where the running instance keeps the token of whoever may
// enter its machine or container as its own user: a deploy, `agnes backup
// create`. It acts as an admin.
func (l Layout) OperatorToken() string { return filepath.Join(l.State(), ".operator_token") }

// openOperator makes the operator token anew, so that one that was copied works
// until the next restart at most. Without a place to write it to, as on a full
// disk, the instance serves all the same.
func (i *Instance) openOperator() {
	token := auth.NewOperatorToken()
	if err := state.WriteFileAtomic(i.layout.OperatorToken(), []byte(token.Reveal()+"\n"), 0o600); err != nil {
		i.log.Warn("The operator token could not be written; commands on this machine that need it are refused.",
			"path", i.layout.OperatorToken(), "error", err, "hint", "Make room for it there, then restart the instance.")
		return
	}
	i.operator = token
}

func (i *Instance) closeOperator() error {
	if i.operator == "" {
		return nil
	}
	if err := os.Remove(i.layout.OperatorToken()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (i *Instance) authenticateOperator(_ context.Context, token redact.Secret) (Caller, error) {
	if i.operator == "" || subtle.ConstantTimeCompare([]byte(token.Reveal()), []byte(i.operator.Reveal())) != 1 {
		return Caller{}, auth.InvalidToken(errors.New("not the operator token of this start"))
	}
	return Caller{UserID: operatorName, Email: operatorName, Role: api.RoleAdmin, sees: func(string) bool { return true }}, nil
}

// Operator reports whether the caller holds the operator token. It is an admin
// without an account.
func (c Caller) Operator() bool { return c.UserID == operatorName }

// hasAccount refuses the operator what belongs to an account.
func (c Caller) hasAccount(what string) error {
	if !c.Operator() {
		return nil
	}
	return problem.New(problem.Forbidden, "The operator token belongs to no account, so "+what+".",
		`Create a user for it, POST /api/users {"email":"…","role":"admin","password":"…"}, and sign in as that user: POST /auth/token.`).
		WithCode("no_account")
}
