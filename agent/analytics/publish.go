package analytics

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Publish builds the next generation over these tables and makes it current.
// One publish runs at a time; others wait, or give up with ctx.
//
// A table that cannot be published fresh is named in Published.Failed and ends
// nothing. An error means that nothing changed: the generation before is still
// current, and nothing of the attempt is left on disk.
func (s *Store) Publish(ctx context.Context, bindings []Binding) (*Published, error) {
	if err := validate(bindings); err != nil {
		return nil, err
	}
	select {
	case s.building <- struct{}{}:
		defer func() { <-s.building }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.mu.Lock()
	closed, previous := s.closed, s.current
	s.mu.Unlock()
	if closed {
		return nil, problem.New(problem.Unavailable, "analytics are closed: the instance is shutting down", "Try again when it is up.")
	}

	started := time.Now()
	b := s.newBuild(previous)
	out, err := b.run(ctx, bindings)
	if err != nil {
		return nil, s.publishError(errors.Join(err, b.discard()))
	}
	s.collect()
	s.log.Info("analytics published", "generation", out.Generation.ID, "unchanged", out.Unchanged,
		"tables", len(out.Generation.Tables), "failed", len(out.Failed), "elapsed", time.Since(started))
	return out, nil
}

// validate refuses bindings that cannot all be views of one database.
func validate(bindings []Binding) error {
	seen := make(map[string]Binding, len(bindings))
	for _, bind := range bindings {
		for _, name := range []struct{ what, value string }{
			{"table id", bind.ID}, {"source", bind.Source}, {"source table", bind.SourceTable},
		} {
			if err := connectors.ValidName(name.value); err != nil {
				return problem.Wrap(err, problem.Invalid,
					fmt.Sprintf("the %s %q of table %q cannot be published: %s", name.what, name.value, bind.ID, problem.As(err).Message),
					fmt.Sprintf("Correct it with PUT /api/admin/registry/%s, or remove it with DELETE /api/admin/registry/%s.", bind.ID, bind.ID),
				).WithCode("invalid_name")
			}
		}
		key := strings.ToLower(bind.ID)
		if other, ok := seen[key]; ok {
			return problem.New(problem.Conflict,
				fmt.Sprintf("table ids must differ by more than case; found %q (%s.%s) and %q (%s.%s)",
					other.ID, other.Source, other.SourceTable, bind.ID, bind.Source, bind.SourceTable),
				fmt.Sprintf("Rename one of them: PUT /api/admin/registry/%s.", bind.ID)).WithCode("duplicate_table")
		}
		seen[key] = bind
	}
	return nil
}

// build is one attempt at the next generation.
type build struct {
	*Store
	id       int64
	dir      string
	previous *Generation // nil on the first publish
	started  time.Time

	prevTables map[sourceTable]TableInfo // last good by origin: a renamed table keeps its data
	hashing    chan struct{}             // slots for reading whole files

	tables   []*table // by id
	remotes  map[string][]connectors.RemoteAttach
	warnings []string
}

type sourceTable struct{ source, table string }

// table is one bound table on its way into the generation.
type table struct {
	bind   Binding
	staged *staged
	info   TableInfo // what is published; unusable while absent
	err    error     // why it is not fresh
	absent bool      // there is not even an old version
}

func (s *Store) newBuild(previous *Generation) *build {
	b := &build{
		Store: s, id: s.nextID, dir: generationDir(s.dir, s.nextID), previous: previous, started: time.Now().UTC(),
		prevTables: map[sourceTable]TableInfo{}, hashing: make(chan struct{}, s.threads),
		remotes: map[string][]connectors.RemoteAttach{},
	}
	if previous != nil {
		for _, id := range slices.Sorted(maps.Keys(previous.Tables)) {
			t := previous.Tables[id]
			b.prevTables[sourceTable{t.Source, t.SourceTable}] = t
		}
	}
	return b
}

func (b *build) run(ctx context.Context, bindings []Binding) (*Published, error) {
	stages, err := b.stage(ctx, bindings)
	if err != nil {
		return nil, err
	}
	for _, bind := range slices.SortedFunc(slices.Values(bindings), func(x, y Binding) int { return cmp.Compare(x.ID, y.ID) }) {
		b.tables = append(b.tables, b.resolve(bind, stages[sourceTable{bind.Source, bind.SourceTable}]))
	}
	if b.unchanged() {
		return b.published(b.previous, true), b.discard()
	}
	if err := b.place(b.tables); err != nil {
		return nil, err
	}
	if err := b.createDatabase(ctx); err != nil {
		return nil, err
	}
	next, err := b.seal()
	if err != nil {
		return nil, err
	}
	if err := b.flip(b.id); err != nil {
		if b.readPointer() != b.id {
			return nil, err
		}
		b.log.Warn("the analytics pointer moved, but its folder could not be synced", "error", err)
	}
	b.nextID++
	next.life = &life{store: b.Store, id: b.id, dir: b.dir, current: true}
	b.mu.Lock()
	if b.current != nil {
		b.current.life.current = false
	}
	b.current, b.lives[b.id] = next, next.life
	b.mu.Unlock()
	if err := b.removeLitter(); err != nil {
		b.log.Warn("stray files beside the analytics pointer could not be removed", "error", err)
	}
	return b.published(next, false), nil
}

// resolve decides what is published for one binding: the staged table, or the
// last good one, or nothing.
func (b *build) resolve(bind Binding, st *staged) *table {
	t := &table{bind: bind, staged: st}
	if st.err != nil {
		b.fallBack(t, forTable(st.err, bind.ID))
		return t
	}
	mode := st.meta.QueryMode
	if bind.QueryMode != "" && bind.QueryMode != mode {
		b.warnings = append(b.warnings, fmt.Sprintf("table %q is registered as %s and published as %s, which is what its extract says", bind.ID, bind.QueryMode, mode))
	}
	t.info = TableInfo{
		ID: bind.ID, Source: bind.Source, SourceTable: bind.SourceTable,
		Description: cmp.Or(bind.Description, st.meta.Description), QueryMode: mode,
		Rows: st.meta.Rows, SizeBytes: st.meta.SizeBytes, ExtractedAt: st.meta.ExtractedAt, Remote: st.remote,
	}
	if mode == connectors.Local {
		t.info.SizeBytes = 0
		for _, p := range st.parts {
			t.info.SizeBytes += p.Size
		}
		t.info = t.info.withParts(b.dir, st.parts)
		// The bytes know better than _meta what is in them, once they were looked at.
		if prev, ok := b.prevTables[sourceTable{bind.Source, bind.SourceTable}]; ok && prev.ContentHash == t.info.ContentHash {
			t.info.Columns, t.info.Rows = prev.Columns, prev.Rows
		}
	}
	return t
}

// forTable puts a table's id into the calls that an error about its files names.
func forTable(err error, id string) error {
	p, ok := errors.AsType[*problem.Error](err)
	if !ok {
		return err
	}
	out := *p
	out.Message = strings.ReplaceAll(p.Message, "{id}", id)
	out.Hint = strings.ReplaceAll(p.Hint, "{id}", id)
	return &out
}

// fallBack publishes the last good version of t's table, marked stale.
func (b *build) fallBack(t *table, why error) {
	t.err = why
	prev, ok := b.prevTables[sourceTable{t.bind.Source, t.bind.SourceTable}]
	if !ok {
		t.absent = true
		return
	}
	parts := slices.Clone(prev.parts)
	for i := range parts {
		from := prev.Files[i]
		if err := parts[i].prove(from); err != nil {
			t.absent = true
			t.err = problem.Wrap(errors.Join(why, err), problem.Internal,
				fmt.Sprintf("table %q has no fresh data (%s), and its last good file %s was changed or removed since it was published", t.bind.ID, sentence(why), from),
				"Sync again: POST /api/sync/trigger. Keep other programs from writing below "+b.Store.dir+".")
			return
		}
		parts[i].from = from
	}
	t.info = prev.withParts(b.dir, parts)
	t.info.ID, t.info.Description = t.bind.ID, cmp.Or(t.bind.Description, prev.Description)
	t.info.Stale, t.info.StaleReason = true, sentence(why)
	if !prev.Stale {
		t.info.StaleSince = b.started
	}
	if prev.QueryMode == connectors.Remote {
		b.remotes[prev.Source] = b.previous.Remotes[prev.Source]
	}
}

// sentence is err's message for people, without its chain of causes.
func sentence(err error) string {
	if p, ok := errors.AsType[*problem.Error](err); ok {
		return p.Message
	}
	return err.Error()
}

// unchanged reports whether the next generation would be like the current one.
func (b *build) unchanged() bool {
	if b.previous == nil || b.previous.root != b.Store.dir || !exists(b.previous.DatabasePath) {
		return false
	}
	n := 0
	for _, t := range b.tables {
		if t.absent {
			continue
		}
		n++
		prev, ok := b.previous.Tables[t.bind.ID]
		if !ok {
			return false
		}
		now := t.info
		if len(now.parts) != len(prev.parts) {
			return false
		}
		for i, p := range now.parts {
			if p.from != prev.Files[i] {
				return false
			}
		}
		now.Files, now.parts = prev.Files, prev.parts
		if now.ExtractedAt.Equal(prev.ExtractedAt) {
			now.ExtractedAt = prev.ExtractedAt
		}
		if !reflect.DeepEqual(now, prev) {
			return false
		}
	}
	return n == len(b.previous.Tables) && reflect.DeepEqual(b.remotes, nonNil(b.previous.Remotes))
}

func nonNil[M ~map[K]V, K comparable, V any](m M) M {
	if m == nil {
		return M{}
	}
	return m
}

// place links every file that comes from the generation before.
func (b *build) place(tables []*table) error {
	done := map[string]bool{}
	for _, t := range tables {
		for _, p := range t.info.parts {
			if t.absent || p.from == "" || done[p.File] {
				continue
			}
			done[p.File] = true
			if err := b.linkPrevious(p); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *build) linkPrevious(p part) error {
	dst := filepath.Join(b.dir, filepath.FromSlash(p.File))
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return err
	}
	ok, err := link(p.from, dst)
	if ok || err != nil {
		return err
	}
	// A file system without hardlinks.
	src, err := os.Open(p.from)
	if err != nil {
		return err
	}
	_, err = copyFile(src, dst)
	mtime := time.Unix(0, p.Mtime)
	return errors.Join(err, src.Close(), os.Chtimes(dst, mtime, mtime))
}

// seal makes the folder a complete generation: all is synced, then the manifest
// is written.
func (b *build) seal() (*Generation, error) {
	m := manifest{Format: manifestFormat, ID: b.id, Root: b.Store.dir, PublishedAt: b.started, Remotes: b.remotes}
	for _, t := range b.tables {
		if !t.absent {
			m.Tables = append(m.Tables, newRecord(t.info))
		}
	}
	err := filepath.WalkDir(b.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		return syncPath(path)
	})
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	temp := filepath.Join(b.dir, manifestFile+".tmp")
	if err := writeSynced(temp, raw, 0o444); err != nil {
		return nil, err
	}
	if err := os.Rename(temp, filepath.Join(b.dir, manifestFile)); err != nil {
		return nil, err
	}
	if err := errors.Join(syncPath(b.dir), syncPath(filepath.Dir(b.dir))); err != nil {
		return nil, err
	}
	return loadGeneration(b.dir, b.id)
}

// discard removes all that the attempt left.
func (b *build) discard() error { return os.RemoveAll(b.dir) }

func (b *build) published(g *Generation, unchanged bool) *Published {
	out := &Published{Generation: g, Unchanged: unchanged, Failed: map[string]error{}, Warnings: b.warnings}
	for _, t := range b.tables {
		if t.err != nil {
			out.Failed[t.bind.ID] = t.err
			continue
		}
		if st := t.staged; st.fresh && !st.trust && st.meta.Rows != t.info.Rows {
			out.Warnings = append(out.Warnings, fmt.Sprintf("table %q: _meta of source %q says %d rows, its files hold %d",
				t.bind.ID, t.bind.Source, st.meta.Rows, t.info.Rows))
		}
		prev, ok := b.prevTables[sourceTable{t.bind.Source, t.bind.SourceTable}]
		if ok && !unchanged && t.info.Rows == 0 && prev.Rows > 0 {
			out.Warnings = append(out.Warnings, fmt.Sprintf("table %q has 0 rows now; it had %d before", t.bind.ID, prev.Rows))
		}
	}
	return out
}
