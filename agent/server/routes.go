package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keboola/agnes-the-ai-analyst/agent"
	"github.com/keboola/agnes-the-ai-analyst/agent/api"
)

// Inputs and outputs that several calls share.
type (
	none        struct{}
	body[T any] struct{ Body T }
	byID        struct {
		ID string `path:"id" maxLength:"64"`
	}
)

func answer[T any](v T, err error) (*body[T], error) {
	if err != nil {
		return nil, err
	}
	return &body[T]{v}, nil
}

func (s *Server) routes() {
	s.healthRoutes()
	s.accountRoutes()
	s.adminRoutes()
	s.syncRoutes()
	s.dataRoutes()
}

func (s *Server) healthRoutes() {
	in := s.opt.Instance
	get := func(id, path, summary string) huma.Operation {
		return huma.Operation{OperationID: id, Method: http.MethodGet, Path: path, Summary: summary, Tags: []string{"Health"}}
	}
	register(s, public, get("health", "/api/health", "State of the instance, always with status 200"),
		func(ctx context.Context, _ agent.Caller, _ *none) (*body[api.Health], error) {
			return answer(in.Health(ctx), nil)
		})
	register(s, user, get("health-details", "/api/health/details", "State of the instance with tables, disk and limits"),
		func(ctx context.Context, caller agent.Caller, _ *none) (*body[api.HealthDetails], error) {
			return answer(in.HealthDetails(ctx, caller))
		})
	register(s, public, get("version", "/api/version", "What is running"),
		func(context.Context, agent.Caller, *none) (*body[api.Version], error) {
			return answer(in.Version(), nil)
		})

	type probe struct {
		Status int
		Body   struct {
			Status string `json:"status"`
		}
	}
	probeOf := func(ok bool, good, bad string) (*probe, error) {
		p := &probe{Status: http.StatusOK}
		p.Body.Status = good
		if !ok {
			p.Status, p.Body.Status = http.StatusServiceUnavailable, bad
		}
		return p, nil
	}
	register(s, public, get("livez", "/livez", "200 while the process answers"),
		func(context.Context, agent.Caller, *none) (*probe, error) { return probeOf(true, "alive", "") })
	register(s, public, get("readyz", "/readyz", "200 while a background write succeeds, else 503"),
		func(context.Context, agent.Caller, *none) (*probe, error) {
			return probeOf(in.Ready(), "ready", "not ready: see GET /api/health")
		})
}

func (s *Server) accountRoutes() {
	in := s.opt.Instance
	op := func(method, id, path, summary string, status int, errs ...int) huma.Operation {
		return huma.Operation{
			OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{"Accounts"}, DefaultStatus: status,
			Errors: append([]int{http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusInternalServerError}, errs...),
		}
	}

	type bootstrapInput struct {
		SetupToken string `header:"X-Setup-Token" doc:"The one-time token from the log or DATA_DIR/state/.setup_token; not needed from this machine."`
		Body       api.BootstrapRequest
	}
	bootstrap := op(http.MethodPost, "bootstrap", "/auth/bootstrap", "Create the first admin, once", http.StatusOK, http.StatusForbidden, http.StatusConflict, http.StatusTooManyRequests)
	bootstrap.Middlewares = huma.Middlewares{markTrusted(s)}
	register(s, public, bootstrap,
		func(ctx context.Context, caller agent.Caller, i *bootstrapInput) (*body[api.TokenResponse], error) {
			return answer(in.Bootstrap(ctx, agent.SetupProof{Token: i.SetupToken, Trusted: trusted(ctx)}, caller.Remote, i.Body))
		})
	register(s, public, op(http.MethodPost, "sign-in", "/auth/token", "Sign in by password", http.StatusOK, http.StatusUnauthorized, http.StatusTooManyRequests),
		func(ctx context.Context, caller agent.Caller, i *body[api.TokenRequest]) (*body[api.TokenResponse], error) {
			return answer(in.SignIn(ctx, caller.Remote, i.Body))
		})
	register(s, user, op(http.MethodPost, "sign-out", "/auth/logout", "Revoke the token that makes this call", http.StatusNoContent),
		func(ctx context.Context, caller agent.Caller, _ *none) (*none, error) {
			return &none{}, in.SignOut(ctx, caller)
		})

	register(s, user, op(http.MethodGet, "list-tokens", "/auth/tokens", "List your personal access tokens", http.StatusOK),
		func(ctx context.Context, caller agent.Caller, _ *none) (*body[api.AccessTokens], error) {
			return answer(in.AccessTokens(ctx, caller))
		})
	register(s, user, op(http.MethodPost, "create-token", "/auth/tokens", "Create a personal access token; it is shown once", http.StatusCreated, http.StatusConflict),
		func(ctx context.Context, caller agent.Caller, i *body[api.CreateTokenRequest]) (*body[api.CreatedToken], error) {
			return answer(in.CreateAccessToken(ctx, caller, i.Body))
		})
	register(s, user, op(http.MethodDelete, "revoke-token", "/auth/tokens/{id}", "Revoke a personal access token", http.StatusNoContent, http.StatusNotFound, http.StatusConflict),
		func(ctx context.Context, caller agent.Caller, i *byID) (*none, error) {
			return &none{}, in.RevokeAccessToken(ctx, caller, i.ID)
		})

	register(s, admin, op(http.MethodGet, "list-users", "/api/users", "List users", http.StatusOK),
		func(ctx context.Context, caller agent.Caller, _ *none) (*body[api.Users], error) {
			return answer(in.Users(ctx, caller))
		})
	register(s, admin, op(http.MethodPost, "create-user", "/api/users", "Create a user", http.StatusCreated, http.StatusConflict),
		func(ctx context.Context, caller agent.Caller, i *body[api.CreateUserRequest]) (*body[api.User], error) {
			return answer(in.CreateUser(ctx, caller, i.Body))
		})
	register(s, admin, op(http.MethodGet, "get-user", "/api/users/{id}", "Show a user", http.StatusOK, http.StatusNotFound),
		func(ctx context.Context, caller agent.Caller, i *byID) (*body[api.User], error) {
			return answer(in.User(ctx, caller, i.ID))
		})
	type updateUser struct {
		ID   string `path:"id" maxLength:"64"`
		Body api.UpdateUserRequest
	}
	register(s, admin, op(http.MethodPatch, "update-user", "/api/users/{id}", "Change a user's role, grants, name or password", http.StatusOK, http.StatusNotFound, http.StatusConflict),
		func(ctx context.Context, caller agent.Caller, i *updateUser) (*body[api.User], error) {
			return answer(in.UpdateUser(ctx, caller, i.ID, i.Body))
		})
	register(s, admin, op(http.MethodDelete, "delete-user", "/api/users/{id}", "Delete a user", http.StatusNoContent, http.StatusNotFound, http.StatusConflict),
		func(ctx context.Context, caller agent.Caller, i *byID) (*none, error) {
			return &none{}, in.DeleteUser(ctx, caller, i.ID)
		})
}

func (s *Server) adminRoutes() {
	in := s.opt.Instance
	op := func(method, id, path, summary string, status int, errs ...int) huma.Operation {
		return huma.Operation{
			OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{"Administration"}, DefaultStatus: status,
			Errors: append([]int{http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusInternalServerError}, errs...),
		}
	}
	register(s, admin, op(http.MethodGet, "get-config", "/api/admin/config", "Every setting with its source; secrets are redacted", http.StatusOK),
		func(ctx context.Context, caller agent.Caller, _ *none) (*body[api.Config], error) {
			return answer(in.Config(ctx, caller))
		})
	register(s, admin, op(http.MethodPost, "configure", "/api/admin/configure", "Choose and prove a data source, and change settings", http.StatusOK, http.StatusConflict),
		func(ctx context.Context, caller agent.Caller, i *body[api.ConfigureRequest]) (*body[api.ConfigureResponse], error) {
			return answer(in.Configure(ctx, caller, i.Body))
		})
	type discover struct {
		DryRun bool `query:"dry_run" doc:"Only say what would be registered."`
	}
	register(s, admin, op(http.MethodPost, "discover-and-register", "/api/admin/discover-and-register", "Register every table of the data source", http.StatusOK, http.StatusConflict),
		func(ctx context.Context, caller agent.Caller, i *discover) (*body[api.Discovery], error) {
			return answer(in.Discover(ctx, caller, i.DryRun))
		})
	register(s, admin, op(http.MethodGet, "list-registry", "/api/admin/registry", "List registered tables", http.StatusOK),
		func(ctx context.Context, caller agent.Caller, _ *none) (*body[api.Registry], error) {
			return answer(in.Registry(ctx, caller))
		})
	register(s, admin, op(http.MethodPost, "register-table", "/api/admin/register-table", "Register one table", http.StatusCreated, http.StatusConflict),
		func(ctx context.Context, caller agent.Caller, i *body[api.RegisterTableRequest]) (*body[api.RegisteredTable], error) {
			return answer(in.RegisterTable(ctx, caller, i.Body))
		})
	type updateTable struct {
		ID   string `path:"id" maxLength:"64"`
		Body api.UpdateTableRequest
	}
	register(s, admin, op(http.MethodPut, "update-table", "/api/admin/registry/{id}", "Change a registered table", http.StatusOK, http.StatusNotFound, http.StatusConflict),
		func(ctx context.Context, caller agent.Caller, i *updateTable) (*body[api.RegisteredTable], error) {
			return answer(in.UpdateTable(ctx, caller, i.ID, i.Body))
		})
	register(s, admin, op(http.MethodDelete, "unregister-table", "/api/admin/registry/{id}", "Take a table out of the registry and the published tables", http.StatusNoContent, http.StatusNotFound, http.StatusConflict),
		func(ctx context.Context, caller agent.Caller, i *byID) (*none, error) {
			return &none{}, in.UnregisterTable(ctx, caller, i.ID)
		})
	register(s, admin, op(http.MethodPost, "drain", "/api/admin/drain", "Hold syncs and changes back before an upgrade, or stop doing so", http.StatusOK),
		func(ctx context.Context, caller agent.Caller, i *body[api.DrainRequest]) (*body[api.Drain], error) {
			return answer(in.Drain(ctx, caller, i.Body))
		})
	register(s, admin, op(http.MethodPost, "backup", "/api/admin/backup", "Make a backup; the answer comes when it is verified", http.StatusOK, http.StatusConflict, http.StatusInsufficientStorage),
		func(ctx context.Context, caller agent.Caller, i *body[api.BackupRequest]) (*body[api.Backup], error) {
			return answer(in.Backup(ctx, caller, i.Body))
		})
	register(s, admin, op(http.MethodGet, "list-backups", "/api/admin/backups", "List the backups on this machine, newest first", http.StatusOK),
		func(ctx context.Context, caller agent.Caller, _ *none) (*body[api.Backups], error) {
			return answer(in.Backups(ctx, caller))
		})
	type auditInput struct {
		Limit int `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	}
	register(s, admin, op(http.MethodGet, "audit", "/api/admin/audit", "Who changed what, newest first", http.StatusOK),
		func(ctx context.Context, caller agent.Caller, i *auditInput) (*body[api.AuditLog], error) {
			return answer(in.Audit(ctx, caller, i.Limit))
		})
}

type trustedKey struct{}

// markTrusted tells the bootstrap handler what only the raw request shows.
func markTrusted(s *Server) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		next(huma.WithValue(ctx, trustedKey{}, s.trustedForSetup(rawRequest(ctx))))
	}
}

func trusted(ctx context.Context) bool {
	ok, _ := ctx.Value(trustedKey{}).(bool)
	return ok
}
