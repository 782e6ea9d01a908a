package agent

import (
	"context"
	"fmt"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/agent/analytics"
	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Discover registers every table that the configured source offers and that is
// not registered yet; with dryRun it only says which. It is idempotent.
func (i *Instance) Discover(ctx context.Context, caller Caller, dryRun bool) (api.Discovery, error) {
	source, err := i.openSource(i.Settings())
	if err != nil {
		return api.Discovery{}, err
	}
	return i.discover(ctx, source, caller.by(), dryRun)
}

func (i *Instance) discover(ctx context.Context, source connectors.Source, by state.By, dryRun bool) (api.Discovery, error) {
	out := api.Discovery{Source: source.Name(), DryRun: dryRun, Errors: []api.DiscoveryError{}, Tables: []api.RegisteredTable{}, Warnings: []string{}}
	found, warnings, err := source.Discover(ctx)
	if err != nil {
		return out, err
	}
	for _, w := range warnings {
		out.Warnings = append(out.Warnings, warningText(w))
	}
	registered, err := i.state.ListTables(ctx)
	if err != nil {
		return out, err
	}
	taken, known := map[string]bool{}, map[string]state.Table{}
	for _, t := range registered {
		taken[strings.ToLower(t.ID)] = true
		if t.Source == source.Name() {
			known[t.SourceTable] = t
		}
	}
	var added []state.Table
	for _, t := range found {
		if existing, ok := known[t.Name]; ok {
			out.Skipped++
			out.Tables = append(out.Tables, registeredTable(existing))
			continue
		}
		id := t.Name
		if taken[strings.ToLower(id)] {
			id = source.Name() + "_" + t.Name
		}
		if err := connectors.ValidName(id); err != nil || taken[strings.ToLower(id)] {
			out.Errors = append(out.Errors, api.DiscoveryError{
				Table:   t.Name,
				Message: fmt.Sprintf("No free id was found: %q and %q are taken or not valid.", t.Name, id),
				Hint:    fmt.Sprintf(`Register it by hand: POST /api/admin/register-table {"id":"…","source":%q,"source_table":%q}`, source.Name(), t.Name),
			})
			continue
		}
		taken[strings.ToLower(id)] = true
		added = append(added, state.Table{ID: id, Source: source.Name(), SourceTable: t.Name, Description: t.Description, QueryMode: string(t.QueryMode), Enabled: true})
	}
	out.Registered = len(added)
	if !dryRun && len(added) > 0 {
		if err := i.drain.do(func() error {
			added, err = i.state.RegisterTables(ctx, added, by)
			return err
		}); err != nil {
			return out, err
		}
	}
	for _, t := range added {
		out.Tables = append(out.Tables, registeredTable(t))
	}
	return out, nil
}

func warningText(w connectors.Warning) string {
	if w.Table == "" {
		return w.Message
	}
	return w.Table + ": " + w.Message
}

// Registry lists the registered tables.
func (i *Instance) Registry(ctx context.Context, _ Caller) (api.Registry, error) {
	tables, err := i.state.ListTables(ctx)
	out := api.Registry{Tables: []api.RegisteredTable{}, Count: len(tables)}
	for _, t := range tables {
		out.Tables = append(out.Tables, registeredTable(t))
	}
	return out, err
}

func registeredTable(t state.Table) api.RegisteredTable {
	if t.SyncStrategy == "" {
		t.SyncStrategy = state.SyncFullRefresh
	}
	if t.QueryMode == "" {
		t.QueryMode = string(connectors.Local)
	}
	return api.RegisteredTable{
		ID: t.ID, Name: t.ID, Source: t.Source, SourceTable: t.SourceTable, Description: t.Description,
		SyncStrategy: t.SyncStrategy, QueryMode: t.QueryMode, Enabled: t.Enabled, CreatedAt: t.CreatedAt, UpdatedAt: t.UpdatedAt,
	}
}

// RegisterTable registers one table; its data comes with the next sync, or at
// once where the source's last extract has it.
func (i *Instance) RegisterTable(ctx context.Context, caller Caller, req api.RegisterTableRequest) (api.RegisteredTable, error) {
	id := req.ID
	if id == "" {
		id = req.SourceTable
	}
	for _, name := range []string{id, req.Source} {
		if err := connectors.ValidName(name); err != nil {
			return api.RegisteredTable{}, problem.Wrap(err, problem.Unprocessable, problem.As(err).Message, problem.As(err).Hint)
		}
	}
	var t state.Table
	if err := i.drain.do(func() (err error) {
		t, err = i.state.RegisterTable(ctx, state.Table{
			ID: id, Source: req.Source, SourceTable: req.SourceTable, Description: req.Description, QueryMode: req.QueryMode, Enabled: true,
		}, caller.by())
		return err
	}); err != nil {
		return api.RegisteredTable{}, err
	}
	i.republish(ctx)
	return registeredTable(t), nil
}

// UpdateTable changes what the request names.
func (i *Instance) UpdateTable(ctx context.Context, caller Caller, id string, req api.UpdateTableRequest) (api.RegisteredTable, error) {
	var t state.Table
	if err := i.drain.do(func() (err error) {
		t, err = i.state.UpdateTable(ctx, id, state.TablePatch{Description: req.Description, Enabled: req.Enabled}, caller.by())
		return err
	}); err != nil {
		return api.RegisteredTable{}, err
	}
	i.republish(ctx)
	return registeredTable(t), nil
}

// UnregisterTable takes a table away from everybody. Its extract stays.
func (i *Instance) UnregisterTable(ctx context.Context, caller Caller, id string) error {
	if err := i.drain.do(func() error { return i.state.DeleteTable(ctx, id, caller.by()) }); err != nil {
		return err
	}
	i.republish(ctx)
	return nil
}

// publish makes a generation of what is registered now. Reading the registry
// and publishing are one step, so the newest registry always wins.
func (i *Instance) publish(ctx context.Context) (*analytics.Published, error) {
	i.publishing.Lock()
	defer i.publishing.Unlock()
	tables, err := i.state.ListTables(ctx)
	if err != nil {
		return nil, err
	}
	var bindings []analytics.Binding
	for _, t := range tables {
		if t.Enabled {
			bindings = append(bindings, analytics.Binding{
				ID: t.ID, Source: t.Source, SourceTable: t.SourceTable, Description: t.Description, QueryMode: connectors.QueryMode(t.QueryMode),
			})
		}
	}
	return i.analytics.Publish(ctx, bindings)
}

// republish follows a change of the registry. Callers see the registry's state
// at once (see visible); a publish that fails is retried by the next sync, and
// health says so meanwhile.
func (i *Instance) republish(ctx context.Context) {
	if _, err := i.publish(context.WithoutCancel(ctx)); err != nil {
		i.log.Error("Publishing after a change of the registry failed; the tables of before stay.", "error", err)
		i.health.setPublished(err)
		return
	}
	i.health.setPublished(nil)
}
