package analytics

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// maxTakes is how often a source is taken that is replaced meanwhile.
const maxTakes = 3

// staged is what the extracts have for one source table.
type staged struct {
	err    error // why there is nothing fresh
	meta   connectors.Meta
	remote *connectors.RemoteAttach
	all    []connectors.RemoteAttach // of a remote table's source
	parts  []part
	fresh  bool // some part was not in the generation before
	trust  bool // committed by connectors.Writer
}

// cachedExtract is what an extract said of itself, for as long as its file is
// the same.
type cachedExtract struct {
	state   sourceState
	extract *connectors.Extract
}

// rejection remembers files that could not be bound, so that a table which
// stays broken does not cost a new generation on each publish.
type rejection struct {
	origins []identity
	err     error
}

// sourceState tells one state of an extract from the next.
type sourceState struct {
	folder uint64 // inode: a commit swaps the whole folder
	file   identity
	wal    bool
}

// stage looks at every bound source and brings new files into the generation's
// folder.
func (b *build) stage(ctx context.Context, bindings []Binding) (map[sourceTable]*staged, error) {
	bySource := map[string][]string{}
	for _, bind := range bindings {
		if !slices.Contains(bySource[bind.Source], bind.SourceTable) {
			bySource[bind.Source] = append(bySource[bind.Source], bind.SourceTable)
		}
	}
	for source := range b.extract {
		if _, bound := bySource[source]; !bound {
			delete(b.extract, source)
		}
	}

	type result struct {
		source string
		tables map[string]*staged
		cached cachedExtract
	}
	results := make(chan result, len(bySource))
	preloaded := b.preload(ctx, slices.Sorted(maps.Keys(bySource)))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(b.threads)
	for source, tables := range bySource {
		cached, ok := preloaded[source]
		if !ok {
			cached = b.extract[source]
		}
		g.Go(func() error {
			tables, cached, err := b.stageSource(ctx, source, tables, cached)
			results <- result{source, tables, cached}
			return err
		})
	}
	err := g.Wait()
	close(results)
	if err != nil {
		return nil, err
	}
	all := map[sourceTable]*staged{}
	for r := range results {
		if r.cached.extract == nil {
			delete(b.extract, r.source)
		} else {
			b.extract[r.source] = r.cached
		}
		for name, st := range r.tables {
			all[sourceTable{r.source, name}] = st
			if st.err == nil && st.meta.QueryMode == connectors.Remote {
				b.remotes[r.source] = st.all
			}
		}
	}
	return all, nil
}

// stageSource stages the bound tables of one source. Its error ends the
// publish; what is wrong with the source itself is in the staged tables.
func (b *build) stageSource(ctx context.Context, source string, tables []string, cached cachedExtract) (map[string]*staged, cachedExtract, error) {
	dir := filepath.Join(b.extracts, source)
	for range maxTakes {
		before, err := stateOf(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return allFailed(tables, err), cachedExtract{}, nil
		}
		ext := cached.extract
		if err != nil || ext == nil || before.wal || before != cached.state {
			ext, err = connectors.ReadExtract(ctx, dir)
			if ctx.Err() != nil {
				return nil, cachedExtract{}, ctx.Err()
			}
			if err != nil {
				return allFailed(tables, b.sourceError(source, dir, err)), cachedExtract{}, nil
			}
		}
		out, err := b.stageTables(ctx, source, tables, ext)
		if err != nil {
			return nil, cachedExtract{}, err
		}
		b.staged(source)
		if after, err := stateOf(dir); err == nil && after == before {
			cached = cachedExtract{}
			if ext.State != nil || before.file.age(b.started) > b.settle {
				cached = cachedExtract{before, ext}
			}
			return out, cached, nil
		}
		cached = cachedExtract{}
		if err := os.RemoveAll(filepath.Join(b.dir, "data", source)); err != nil {
			return nil, cachedExtract{}, err
		}
	}
	return allFailed(tables, problem.New(problem.Conflict,
		fmt.Sprintf("the extract of source %q was replaced %d times while it was being published", source, maxTakes),
		"Sync again when the connector has finished: POST /api/sync/trigger.")), cachedExtract{}, nil
}

func allFailed(tables []string, err error) map[string]*staged {
	out := make(map[string]*staged, len(tables))
	for _, t := range tables {
		out[t] = &staged{err: err}
	}
	return out
}

// sourceError says in one sentence that a source as a whole is out.
func (b *build) sourceError(source, dir string, err error) error {
	p, ok := errors.AsType[*problem.Error](err)
	if !ok {
		p = problem.Wrap(err, problem.Unprocessable, "its extract.duckdb cannot be read", "See what is wrong with it: agnes contract verify "+dir)
	}
	out := *p
	out.Message = fmt.Sprintf("source %q cannot be read: %s", source, p.Message)
	return &out
}

func stateOf(dir string) (sourceState, error) {
	folder, err := identityOf(dir)
	if err != nil {
		return sourceState{}, err
	}
	file := filepath.Join(dir, connectors.ExtractFile)
	id, err := identityOf(file)
	return sourceState{folder.Ino, id, exists(file + ".wal")}, err
}

// stageTables stages the bound tables of an extract.
func (b *build) stageTables(ctx context.Context, source string, tables []string, ext *connectors.Extract) (map[string]*staged, error) {
	out := make(map[string]*staged, len(tables))
	var remote *connectors.RemoteAttach
	if len(ext.Remote) == 1 {
		remote = &ext.Remote[0]
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(b.threads)
	for _, name := range tables {
		st := &staged{trust: ext.State != nil}
		out[name] = st
		meta, ok := ext.Meta(name)
		if !ok {
			st.err = b.missing(source, name, ext)
			continue
		}
		st.meta = meta
		if meta.QueryMode == connectors.Remote {
			st.remote, st.all = remote, ext.Remote
			continue
		}
		g.Go(func() error {
			err := b.stageFiles(ctx, source, st, ext)
			var ours *destinationError
			if err == nil || ctx.Err() != nil || errors.As(err, &ours) || isNoSpace(err) {
				return errors.Join(err, ctx.Err())
			}
			*st = staged{err: err}
			return os.RemoveAll(filepath.Join(b.dir, "data", source, name))
		})
	}
	return out, g.Wait()
}

// missing explains why an extract has no such table: the guard against a
// source that shrinks by mistake.
func (b *build) missing(source, name string, ext *connectors.Extract) error {
	if _, had := b.prevTables[sourceTable{source, name}]; !had {
		return problem.New(problem.NotFound,
			fmt.Sprintf("the extract of source %q has no table %q in _meta", source, name),
			"Sync the source: POST /api/sync/trigger. If the table is not wanted, remove it: DELETE /api/admin/registry/{id}.").WithCode("table_missing")
	}
	message := fmt.Sprintf("the last extract of source %q no longer has table %q; unregister it with DELETE /api/admin/registry/{id} if that is intended", source, name)
	if len(ext.Tables) == 0 {
		message = fmt.Sprintf("the last extract of source %q is empty, so none of its tables was replaced, %q among them", source, name)
	}
	return problem.New(problem.Refused, message,
		"If the table is gone for good: DELETE /api/admin/registry/{id}. If not, mend the source and sync again: POST /api/sync/trigger.").WithCode("table_gone")
}

// stageFiles brings the parquet files of one table into the generation's
// folder, or finds them in the generation before.
func (b *build) stageFiles(ctx context.Context, source string, st *staged, ext *connectors.Extract) error {
	files, err := ext.Files(st.meta.Table)
	if err != nil {
		return err
	}
	origins := make([]identity, len(files))
	for i, file := range files {
		id, info, err := identify(file)
		if err != nil {
			return unreadable(file, err)
		}
		if !info.Mode().IsRegular() {
			return unreadable(file, errors.New("not a regular file"))
		}
		origins[i] = id
	}
	if r, ok := b.rejected[source+"."+st.meta.Table]; ok && slices.EqualFunc(r.origins, origins, identity.sameContent) {
		return r.err
	}
	prev := b.prevTables[sourceTable{source, st.meta.Table}]
	single := filepath.Dir(files[0]) == filepath.Join(ext.Dir, connectors.DataDir)
	for i, file := range files {
		rel := path.Join("data", source, st.meta.Table, fmt.Sprintf("part-%05d.parquet", i))
		if single {
			rel = path.Join("data", source, st.meta.Table+".parquet")
		}
		if old, ok := findPart(prev, origins[i]); ok {
			old.File = rel
			st.parts = append(st.parts, old)
			continue
		}
		p, err := b.take(ctx, file, rel, origins[i], st.trust)
		if err != nil {
			if single {
				err = errors.Join(err, removeIfThere(filepath.Join(b.dir, filepath.FromSlash(rel))))
			}
			return err
		}
		st.fresh = true
		st.parts = append(st.parts, p)
	}
	if len(st.parts) != len(prev.parts) {
		st.fresh = true
	}
	return nil
}

// findPart returns the part of the generation before that still is the
// extract's file of this identity.
func findPart(prev TableInfo, now identity) (part, bool) {
	for i, p := range prev.parts {
		if p.Linked && !p.Origin.sameContent(now) || !p.Linked && p.Origin != now {
			continue
		}
		mine, err := identityOf(prev.Files[i])
		if err != nil || mine.Size != p.Size || mine.Mtime != p.Mtime {
			continue
		}
		if p.Linked && mine.Ino != now.Ino {
			continue
		}
		p.from = prev.Files[i]
		return p, true
	}
	return part{}, false
}

// take brings one file of an extract into the generation, by link where the
// extract's files are never rewritten, else by copy.
func (b *build) take(ctx context.Context, file, rel string, origin identity, mayLink bool) (part, error) {
	select {
	case b.hashing <- struct{}{}:
		defer func() { <-b.hashing }()
	case <-ctx.Done():
		return part{}, ctx.Err()
	}
	dst := filepath.Join(b.dir, filepath.FromSlash(rel))
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return part{}, &destinationError{err}
	}
	p := part{File: rel, Origin: origin}
	if mayLink {
		linked, err := link(file, dst)
		if err != nil {
			return part{}, unreadable(file, err)
		}
		p.Linked = linked
	}
	var err error
	if p.Linked {
		p.SHA256, err = takeLink(dst)
	} else {
		p.SHA256, err = takeCopy(file, dst)
		if origin.age(time.Now()) <= b.settle {
			p.Origin = identity{} // too young to recognize; the next publish copies it again
		}
	}
	if err != nil {
		return part{}, unreadable(file, err)
	}
	now, err := identityOf(file)
	mine, errMine := identityOf(dst)
	if errMine != nil {
		return part{}, &destinationError{errMine}
	}
	same := now.sameContent(origin) && mine.Size == origin.Size
	if p.Linked {
		same = same && mine.Ino == origin.Ino
	} else {
		same = same && now.Ctime == origin.Ctime
	}
	if err != nil || !same {
		return part{}, problem.Wrap(err, problem.Conflict,
			"the file "+file+" changed while it was being published",
			"Sync again when the connector has finished: POST /api/sync/trigger.").WithCode("file_changed")
	}
	p.Size, p.Mtime = mine.Size, mine.Mtime
	return p, nil
}

// takeLink checks and protects a link that was just made; it may be to
// something else than what was looked at before.
func takeLink(dst string) (string, error) {
	info, err := os.Lstat(dst)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", errors.New("not a regular file")
	}
	if err := protect(dst, info); err != nil {
		return "", err
	}
	return hashFile(dst)
}

// takeCopy copies a file that others may be writing to, without following a
// link or waiting for a pipe.
func takeCopy(file, dst string) (string, error) {
	src, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer src.Close()
	if info, err := src.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", errors.Join(err, errors.New("not a regular file"))
	}
	return copyFile(src, dst)
}

// unreadable is a fault of one file of an extract. Failures of our own side
// pass through.
func unreadable(file string, err error) error {
	var ours *destinationError
	if errors.As(err, &ours) || isNoSpace(err) {
		return err
	}
	return problem.Wrap(err, problem.Unprocessable,
		"the file "+file+" cannot be read",
		"See what is wrong with it: agnes contract verify "+filepath.Dir(filepath.Dir(file))).WithCode("file_unreadable")
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
