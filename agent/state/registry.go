package state

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// SyncFullRefresh is the sync strategy of a table that names none.
const SyncFullRefresh = "full_refresh"

// tableID is the rule for table ids and source names; an id is the name of the
// view that people query.
var (
	tableID      = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]{0,63}$`)
	strategyName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)
)

// Table is a row of the registry: a table of a source that people may query.
type Table struct {
	ID           string // name of the view; unique over all sources, without case
	Source       string // folder under extracts/
	SourceTable  string // the table's name in the source; (Source, SourceTable) is unique
	Description  string
	SyncStrategy string // empty: SyncFullRefresh
	QueryMode    string // "local" (default) or "remote"
	Enabled      bool
	CreatedAt    time.Time
	UpdatedAt    time.Time
}

// TablePatch changes the fields that are not nil.
type TablePatch struct {
	Description  *string
	SyncStrategy *string
	QueryMode    *string
	Enabled      *bool
}

// RegisterTable adds one table. An id that is taken in any spelling of case is
// problem.Conflict, code table_exists; a source table that is registered
// already is problem.Conflict, code source_table_exists.
func (s *Store) RegisterTable(ctx context.Context, t Table, by By) (Table, error) {
	tables, err := s.RegisterTables(ctx, []Table{t}, by)
	if err != nil {
		return Table{}, err
	}
	return tables[0], nil
}

// RegisterTables adds all tables or, on the first conflict, none.
func (s *Store) RegisterTables(ctx context.Context, tables []Table, by By) ([]Table, error) {
	if len(tables) == 0 {
		return []Table{}, nil
	}
	added := slices.Clone(tables)
	ids := make([]string, len(added))
	for i := range added {
		t := &added[i]
		if t.SyncStrategy == "" {
			t.SyncStrategy = SyncFullRefresh
		}
		if t.QueryMode == "" {
			t.QueryMode = "local"
		}
		if err := checkTable(*t); err != nil {
			return nil, err
		}
		t.CreatedAt = now()
		t.UpdatedAt = t.CreatedAt
		ids[i] = t.ID
	}
	err := s.update(ctx, func(tx *writeTx) error {
		existing, err := collect(ctx, tx, scanTable, "SELECT * FROM table_registry")
		if err != nil {
			return err
		}
		byID, bySource := map[string]Table{}, map[[2]string]Table{}
		claim := func(t Table) error {
			if o, ok := byID[strings.ToLower(t.ID)]; ok {
				return problem.New(problem.Conflict, fmt.Sprintf("The table id %s is taken by %s of source %s.", t.ID, o.SourceTable, o.Source),
					"Choose another `id`, or change that table with PUT /api/admin/registry/"+o.ID+".").WithCode("table_exists")
			}
			key := [2]string{t.Source, t.SourceTable}
			if o, ok := bySource[key]; ok {
				return problem.New(problem.Conflict, fmt.Sprintf("%s of source %s is registered already as %s.", t.SourceTable, t.Source, o.ID),
					"Change it with PUT /api/admin/registry/"+o.ID+".").WithCode("source_table_exists")
			}
			byID[strings.ToLower(t.ID)], bySource[key] = t, t
			return nil
		}
		for _, t := range existing {
			byID[strings.ToLower(t.ID)], bySource[[2]string{t.Source, t.SourceTable}] = t, t
		}
		var rows [][]driver.Value
		for _, t := range added {
			if err := claim(t); err != nil {
				return err
			}
			rows = append(rows, []driver.Value{t.ID, t.Source, t.SourceTable, t.Description, t.SyncStrategy, t.QueryMode, t.Enabled, t.CreatedAt, t.UpdatedAt})
		}
		if err := tx.insert("table_registry", rows); err != nil {
			return err
		}
		return appendAudit(tx, by.entry("table.register", strings.Join(ids[:min(len(ids), 20)], ","), map[string]any{"count": len(ids), "tables": ids}))
	})
	if err != nil {
		return nil, err
	}
	return added, nil
}

// UpdateTable changes the fields of p that are set and returns the table, or
// problem.NotFound. id is compared without case.
func (s *Store) UpdateTable(ctx context.Context, id string, p TablePatch, by By) (t Table, err error) {
	err = s.update(ctx, func(tx *writeTx) error {
		if t, err = tableByID(ctx, tx, id); err != nil {
			return err
		}
		detail := map[string]any{}
		set(&t.Description, p.Description, "description", detail)
		set(&t.SyncStrategy, p.SyncStrategy, "sync_strategy", detail)
		set(&t.QueryMode, p.QueryMode, "query_mode", detail)
		set(&t.Enabled, p.Enabled, "enabled", detail)
		if err := checkTable(t); err != nil {
			return err
		}
		t.UpdatedAt = now()
		if _, err := tx.exec("UPDATE table_registry SET description = ?, sync_strategy = ?, query_mode = ?, enabled = ?, updated_at = ? WHERE id = ?",
			t.Description, t.SyncStrategy, t.QueryMode, t.Enabled, t.UpdatedAt, t.ID); err != nil {
			return err
		}
		return appendAudit(tx, by.entry("table.update", t.ID, detail))
	})
	if err != nil {
		return Table{}, err
	}
	return t, nil
}

// DeleteTable unregisters a table, or problem.NotFound. Grants of it go with
// it, so that another table registered under its id later is not theirs.
func (s *Store) DeleteTable(ctx context.Context, id string, by By) error {
	return s.update(ctx, func(tx *writeTx) error {
		t, err := tableByID(ctx, tx, id)
		if err != nil {
			return err
		}
		users, err := collect(ctx, tx, scanUser, "SELECT * FROM users WHERE contains(lower(grants_json), lower(?))", t.ID)
		if err != nil {
			return err
		}
		for _, u := range users {
			grants := slices.DeleteFunc(slices.Clone(u.Grants), func(g string) bool { return strings.EqualFold(g, t.ID) })
			if len(grants) == len(u.Grants) {
				continue
			}
			u.Grants, u.UpdatedAt = grants, now()
			if err := saveUser(tx, u); err != nil {
				return err
			}
		}
		if _, err := tx.exec("DELETE FROM table_registry WHERE id = ?", t.ID); err != nil {
			return err
		}
		return appendAudit(tx, by.entry("table.delete", t.ID, map[string]any{"source": t.Source, "source_table": t.SourceTable}))
	})
}

// ListTables returns the whole registry, sorted by id. The caller must not
// change it: all callers get the same.
func (s *Store) ListTables(ctx context.Context) ([]Table, error) {
	l, err := s.lookups(ctx)
	if err != nil {
		return nil, err
	}
	return l.tables, nil
}

// TableByID returns a table or problem.NotFound. id is compared without case.
func (s *Store) TableByID(ctx context.Context, id string) (t Table, err error) {
	err = s.use(ctx, func(db *sql.DB) error {
		t, err = tableByID(ctx, db, id)
		return err
	})
	return t, err
}

func tableByID(ctx context.Context, q querier, id string) (Table, error) {
	t, err := scanTable(q.QueryRowContext(ctx, "SELECT * FROM table_registry WHERE lower(id) = lower(?)", id).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return Table{}, problem.New(problem.NotFound, fmt.Sprintf("There is no table %.64q in the registry.", id), "List the tables with GET /api/admin/registry.")
	}
	return t, err
}

func scanTable(scan func(...any) error) (t Table, err error) {
	return t, scan(&t.ID, &t.Source, &t.SourceTable, &t.Description, &t.SyncStrategy, &t.QueryMode, &t.Enabled, &t.CreatedAt, &t.UpdatedAt)
}

func checkTable(t Table) error {
	const rule = "Names begin with a letter or _, hold letters, digits and _, and have at most 64 characters."
	switch {
	case !tableID.MatchString(t.ID):
		return problem.New(problem.Unprocessable, fmt.Sprintf("The table id %.80q cannot be used as a name.", t.ID), rule)
	case !tableID.MatchString(t.Source):
		return problem.New(problem.Unprocessable, fmt.Sprintf("The source %.80q of table %s cannot be used as a name.", t.Source, t.ID), rule)
	case t.SourceTable == "":
		return problem.New(problem.Unprocessable, fmt.Sprintf("The table %s names no table of its source.", t.ID), "Send `source_table`.")
	case t.QueryMode != "local" && t.QueryMode != "remote":
		return problem.New(problem.Unprocessable, fmt.Sprintf("Expected the query mode local or remote for %s, found %.64q.", t.ID, t.QueryMode), `Send "query_mode": "local".`)
	case !strategyName.MatchString(t.SyncStrategy):
		return problem.New(problem.Unprocessable, fmt.Sprintf("The sync strategy %.64q of %s cannot be used.", t.SyncStrategy, t.ID), `Send "sync_strategy": "full_refresh".`)
	}
	return nil
}

// set assigns *to from if from is given, and notes it for the audit log.
func set[T comparable](to, from *T, name string, detail map[string]any) {
	if from != nil && *from != *to {
		*to = *from
		detail[name] = *from
	}
}
