package agent

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/analytics"
	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// visible is what one caller may see at one moment: a pinned generation and the
// registered, enabled and granted tables. Every way to data starts here.
type visible struct {
	generation *analytics.Generation // nil before the first publish
	tables     []state.Table         // sorted by id; also those that have no data yet
}

func (i *Instance) visible(ctx context.Context, caller Caller) (*visible, error) {
	registered, err := i.state.ListTables(ctx)
	if err != nil {
		return nil, err
	}
	v := &visible{}
	for _, t := range registered {
		if t.Enabled && caller.Sees(t.ID) {
			v.tables = append(v.tables, t)
		}
	}
	if g, ok := i.analytics.Acquire(); ok {
		v.generation = g
	}
	return v, nil
}

func (v *visible) release() {
	if v.generation != nil {
		v.generation.Release()
	}
}

// published returns what the generation serves of a table.
func (v *visible) published(id string) (analytics.TableInfo, bool) {
	if v.generation == nil {
		return analytics.TableInfo{}, false
	}
	info, ok := v.generation.Tables[id]
	return info, ok
}

func (v *visible) number() int64 {
	if v.generation == nil {
		return 0
	}
	return v.generation.ID
}

// Catalog lists the tables that the caller may query.
func (i *Instance) Catalog(ctx context.Context, caller Caller) (api.Catalog, error) {
	v, err := i.visible(ctx, caller)
	if err != nil {
		return api.Catalog{}, err
	}
	defer v.release()
	out := api.Catalog{Tables: []api.CatalogTable{}, Count: len(v.tables)}
	for _, t := range v.tables {
		out.Tables = append(out.Tables, v.catalogTable(t))
	}
	return out, nil
}

// CatalogTable describes one table with its columns. A table that the caller
// may not see is answered like one that does not exist.
func (i *Instance) CatalogTable(ctx context.Context, caller Caller, id string) (api.CatalogTable, error) {
	v, err := i.visible(ctx, caller)
	if err != nil {
		return api.CatalogTable{}, err
	}
	defer v.release()
	t, err := v.table(id)
	if err != nil {
		return api.CatalogTable{}, err
	}
	out := v.catalogTable(t)
	out.Columns = []api.Column{}
	if info, ok := v.published(t.ID); ok {
		for _, c := range info.Columns {
			out.Columns = append(out.Columns, api.Column{Name: c.Name, Type: c.Type})
		}
	}
	return out, nil
}

func (v *visible) table(id string) (state.Table, error) {
	at := slices.IndexFunc(v.tables, func(t state.Table) bool { return strings.EqualFold(t.ID, id) })
	if at < 0 {
		return state.Table{}, problem.New(problem.NotFound, fmt.Sprintf("There is no table %q that you may see.", id), "GET /api/catalog/tables lists yours.")
	}
	return v.tables[at], nil
}

func (v *visible) catalogTable(t state.Table) api.CatalogTable {
	r := registeredTable(t)
	out := api.CatalogTable{
		ID: r.ID, Name: r.Name, Description: r.Description, SourceType: r.Source, SyncStrategy: r.SyncStrategy, QueryMode: r.QueryMode,
	}
	if info, ok := v.published(t.ID); ok {
		out.Rows, out.SizeBytes, out.LastSync = info.Rows, info.SizeBytes, timeOrNil(info.ExtractedAt)
		out.Stale, out.StaleReason = info.Stale, info.StaleReason
		if out.Description == "" {
			out.Description = info.Description
		}
	}
	return out
}

// Manifest lists content hashes, for clients that keep copies.
func (i *Instance) Manifest(ctx context.Context, caller Caller) (api.Manifest, error) {
	v, err := i.visible(ctx, caller)
	if err != nil {
		return api.Manifest{}, err
	}
	defer v.release()
	out := api.Manifest{Generation: v.number(), Tables: []api.ManifestTable{}}
	for _, t := range v.tables {
		info, ok := v.published(t.ID)
		if !ok || info.QueryMode == connectors.Remote {
			continue
		}
		out.Tables = append(out.Tables, api.ManifestTable{
			ID: t.ID, ContentHash: info.ContentHash, Rows: info.Rows, SizeBytes: info.SizeBytes,
			LastSync: info.ExtractedAt, Download: "/api/data/" + t.ID + "/download",
		})
	}
	out.Count = len(out.Tables)
	return out, nil
}

// Download is one file of a published table. Its generation stays pinned until
// Release, so the file cannot vanish or change while it is sent.
type Download struct {
	Path     string
	FileName string
	ETag     string // SHA-256 of the file
	Modified time.Time
	Parts    int
	Release  func()
}

// Download finds a table's file; part counts from 1.
func (i *Instance) Download(ctx context.Context, caller Caller, id string, part int) (*Download, error) {
	v, err := i.visible(ctx, caller)
	if err != nil {
		return nil, err
	}
	d, err := v.download(id, part)
	if err != nil {
		v.release()
		return nil, err
	}
	return d, nil
}

func (v *visible) download(id string, part int) (*Download, error) {
	t, err := v.table(id)
	if err != nil {
		return nil, err
	}
	info, ok := v.published(t.ID)
	switch {
	case !ok:
		return nil, problem.New(problem.NotFound, fmt.Sprintf("The table %s has no data yet.", t.ID), "Ask an admin to sync it: POST /api/sync/trigger.").WithCode("not_synced")
	case info.QueryMode == connectors.Remote:
		return nil, problem.New(problem.NotFound, fmt.Sprintf("The table %s is remote and has no file to download.", t.ID), "Query it: POST /api/query.").WithCode("remote_table")
	case part > len(info.Files):
		return nil, problem.New(problem.NotFound, fmt.Sprintf("The table %s has %d parts; part %d was asked for.", t.ID, len(info.Files), part), "Ask for a part from 1 on.")
	}
	path := info.Files[part-1]
	stat, err := os.Stat(path)
	if err != nil {
		return nil, problem.Wrap(err, problem.Internal, "The table's file is missing.", "Publish the tables again: POST /api/sync/trigger.")
	}
	name := t.ID + ".parquet"
	if len(info.Files) > 1 {
		name = t.ID + "-" + filepath.Base(path)
	}
	return &Download{Path: path, FileName: name, ETag: info.FileHashes[part-1], Modified: stat.ModTime(), Parts: len(info.Files), Release: v.release}, nil
}

// sourcesOf names the sources of the tables, sorted.
func sourcesOf(tables []state.Table) []string {
	names := map[string]bool{}
	for _, t := range tables {
		names[t.Source] = true
	}
	return slices.Sorted(maps.Keys(names))
}
