package analytics

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

const (
	generationsDir = "generations"
	trashPrefix    = ".trash-"                // a generation on its way out
	pointerTemp    = "." + databaseFile + "." // a pointer on its way in
)

// Store holds the generations below one folder. One process may use a folder
// at a time. Its methods are safe for concurrent use.
type Store struct {
	dir, extracts string
	keep, threads int
	settle        time.Duration
	log           *slog.Logger

	building chan struct{} // held by the one publish that runs; guards the next three
	extract  map[string]cachedExtract
	rejected map[string]rejection
	nextID   int64
	staged   func(source string) // tests act between taking a source's files and looking at it again

	mu         sync.Mutex
	closed     bool
	current    *Generation // unpinned; nil before the first publish
	lives      map[int64]*life
	background sync.WaitGroup
}

// Open takes up what the last process left: it removes half-written
// generations, keeps or mends the pointer, and loads the current manifest. It
// does not open DuckDB. That nothing was published yet is no error.
func Open(ctx context.Context, opt Options) (*Store, error) {
	dir, err := filepath.Abs(opt.Dir)
	if err != nil {
		return nil, fmt.Errorf("open analytics: %w", err)
	}
	extracts, err := filepath.Abs(opt.ExtractsDir)
	if err != nil {
		return nil, fmt.Errorf("open analytics: %w", err)
	}
	if i := strings.IndexAny(dir, "*?["); i >= 0 {
		return nil, problem.New(problem.Invalid,
			fmt.Sprintf("the data directory's path must not hold *, ? or [, which DuckDB reads as patterns; found %q in %s", dir[i], dir),
			"Set DATA_DIR to a path without these characters.")
	}
	s := &Store{
		dir: dir, extracts: extracts,
		keep: cmp.Or(opt.Keep, 2), threads: cmp.Or(opt.Threads, 2), settle: settle,
		log:      cmp.Or(opt.Log, slog.New(slog.DiscardHandler)),
		building: make(chan struct{}, 1),
		extract:  map[string]cachedExtract{},
		rejected: map[string]rejection{},
		lives:    map[int64]*life{},
		staged:   func(string) {},
	}
	if err := s.recover(ctx); err != nil {
		return nil, s.openError(err)
	}
	s.collect()
	return s, nil
}

func (s *Store) openError(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return problem.Wrap(err, problem.Unavailable,
			"the analytics folder "+s.dir+" must be readable and writable, and is not",
			"Give the instance's user read and write access to "+s.dir+", then start again.")
	}
	return fmt.Errorf("open analytics: %w", err)
}

func (s *Store) recover(ctx context.Context) error {
	generations := filepath.Join(s.dir, generationsDir)
	if err := os.MkdirAll(generations, 0o755); err != nil {
		return err
	}
	if err := s.removeLitter(); err != nil {
		return err
	}
	complete, err := s.findGenerations(generations)
	if err != nil {
		return err
	}
	pointed := s.readPointer()
	candidates := complete
	if slices.Contains(complete, pointed) {
		candidates = append([]int64{pointed}, complete...)
	}
	for _, id := range candidates {
		if err := ctx.Err(); err != nil {
			return err
		}
		g, err := loadGeneration(generationDir(s.dir, id), id)
		if err != nil {
			s.log.Warn("analytics generation cannot be used; trying another", "generation", id, "error", err)
			continue
		}
		s.current = g
		break
	}
	for _, id := range complete {
		dir := generationDir(s.dir, id)
		if s.current != nil && s.current.ID == pointed && id > pointed {
			// Complete, but the process ended before the pointer moved.
			if err := removeGeneration(dir); err != nil {
				return err
			}
			continue
		}
		s.lives[id] = &life{store: s, id: id, dir: dir}
	}
	if s.current == nil {
		return nil
	}
	s.current.life = s.lives[s.current.ID]
	s.current.life.current = true
	if s.current.ID != pointed {
		s.log.Warn("analytics pointer mended", "pointer", s.pointer(), "generation", s.current.ID)
		if err := s.flip(s.current.ID); err != nil {
			return err
		}
	}
	if s.current.root != s.dir {
		s.log.Warn("analytics folder was moved: programs outside this instance can read its views after the next publish",
			"built_at", s.current.root, "now_at", s.dir)
	}
	return nil
}

// removeLitter removes what an interrupted process left beside the pointer,
// and a log that an outside program may have left: DuckDB would replay it into
// the next generation that the pointer names.
func (s *Store) removeLitter() error {
	stray, err := filepath.Glob(filepath.Join(s.dir, databaseFile+".wal*"))
	if err != nil {
		return err
	}
	for _, path := range stray {
		s.log.Warn("removing a write-ahead log that a program outside this instance left; open server.duckdb read-only", "path", path)
	}
	temp, err := filepath.Glob(filepath.Join(s.dir, pointerTemp+"*"))
	if err != nil {
		return err
	}
	for _, path := range append(stray, temp...) {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// findGenerations returns the complete generations, newest first, removes the
// others and sets the next number beyond all of them.
func (s *Store) findGenerations(dir string) ([]int64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var complete []int64
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		id, ok := parseGeneration(e.Name())
		switch {
		case ok && exists(filepath.Join(path, manifestFile)) && exists(filepath.Join(path, databaseFile)):
			complete = append(complete, id)
		case ok, strings.HasPrefix(e.Name(), trashPrefix):
			s.log.Info("removing an unfinished analytics generation", "path", path)
			if err := os.RemoveAll(path); err != nil {
				return nil, err
			}
		default:
			s.log.Warn("ignoring a path that is no analytics generation", "path", path)
		}
		s.nextID = max(s.nextID, id)
	}
	s.nextID++
	slices.Sort(complete)
	slices.Reverse(complete)
	return complete, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (s *Store) pointer() string { return filepath.Join(s.dir, databaseFile) }

// readPointer returns the generation that the pointer names, or 0.
func (s *Store) readPointer() int64 {
	target, err := os.Readlink(s.pointer())
	if err != nil {
		return 0
	}
	id, ok := parseGeneration(filepath.Base(filepath.Dir(target)))
	if !ok || target != pointerTarget(id) {
		return 0
	}
	return id
}

func pointerTarget(id int64) string {
	return filepath.Join(generationsDir, filepath.Base(generationDir("", id)), databaseFile)
}

// flip moves the pointer to a complete generation by one rename.
func (s *Store) flip(id int64) error {
	temp := filepath.Join(s.dir, fmt.Sprintf("%s%d", pointerTemp, id))
	if err := os.Symlink(pointerTarget(id), temp); err != nil {
		return err
	}
	if err := os.Rename(temp, s.pointer()); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return syncPath(s.dir)
}

// removeGeneration deletes a complete generation so that an interruption leaves
// nothing that looks complete.
func removeGeneration(dir string) error {
	trash := filepath.Join(filepath.Dir(dir), trashPrefix+filepath.Base(dir))
	if err := os.Rename(dir, trash); err != nil {
		return err
	}
	return os.RemoveAll(trash)
}

// Acquire pins the current generation; false means that nothing was published
// yet, or the store is closed. The caller calls Release on what it got.
func (s *Store) Acquire() (*Generation, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil || s.closed {
		return nil, false
	}
	s.current.life.pins++
	return &Generation{
		ID: s.current.ID, Dir: s.current.Dir, DatabasePath: s.current.DatabasePath, PublishedAt: s.current.PublishedAt,
		Tables: s.current.Tables, Remotes: s.current.Remotes, root: s.current.root, life: s.current.life, pinned: true,
	}, true
}

func (s *Store) unpin(l *life) {
	s.mu.Lock()
	l.pins--
	last := l.pins == 0 && (!l.current || s.closed)
	inBackground := last && !s.closed
	if inBackground {
		s.background.Add(1) // under mu, so that Close waits for it
	}
	s.mu.Unlock()
	switch {
	case inBackground:
		go func() {
			defer s.background.Done()
			s.collect()
		}()
	case last:
		s.collect()
	}
}

func (s *Store) onRetire(l *life, f func()) {
	s.mu.Lock()
	if l.phase == live {
		l.onRetire = append(l.onRetire, f)
		f = nil
	}
	s.mu.Unlock()
	if f != nil {
		f()
	}
}

// collect retires generations that nobody needs, and deletes the retired ones
// beyond those to keep.
func (s *Store) collect() {
	s.mu.Lock()
	var leaving []*life
	for _, l := range s.lives {
		if l.phase == live && l.pins == 0 && (!l.current || s.closed) {
			l.phase = retiring
			leaving = append(leaving, l)
		}
	}
	s.mu.Unlock()

	for _, l := range leaving {
		for _, f := range l.onRetire {
			f()
		}
	}

	s.mu.Lock()
	for _, l := range leaving {
		l.phase, l.onRetire = retired, nil
	}
	var old []*life
	for _, l := range s.lives {
		if !l.current {
			old = append(old, l)
		}
	}
	slices.SortFunc(old, func(a, b *life) int { return cmp.Compare(b.id, a.id) })
	var doomed []*life
	for i, l := range old {
		if i >= s.keep && l.phase == retired && !s.closed {
			doomed = append(doomed, l)
			delete(s.lives, l.id)
		}
	}
	s.mu.Unlock()

	for _, l := range doomed {
		if err := removeGeneration(l.dir); err != nil {
			s.log.Warn("an old analytics generation could not be removed; the next start tries again", "path", l.dir, "error", err)
		}
	}
}

// Close ends the store: a publish that runs is waited for, later calls of
// Publish fail and of Acquire find nothing. Generations that are still pinned
// retire when they are released.
func (s *Store) Close() error {
	s.building <- struct{}{}
	defer func() { <-s.building }()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.background.Wait()
	s.collect()
	return nil
}
