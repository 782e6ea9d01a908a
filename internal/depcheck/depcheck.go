// Package depcheck proves the import rules of docs/architecture.md.
//
// Load asks the go command for every package of a module and for what each
// binary links; Check holds the answer against Rules and returns a Finding for
// each breach, with the sentence that says why the rule exists. The layers are
// data (layers.go), the other rules are small functions (rules.go), and the
// modules that each binary may link are lists in testdata that `go test
// ./internal/depcheck -update` rewrites, so that a new dependency is a line in
// a diff that somebody reads.
//
// Only tests use this package; no binary links it.
package depcheck

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Binary is one program of the module.
type Binary struct {
	Package string // import path below the module's, such as cmd/agnes
	Static  bool   // builds with CGO_ENABLED=0 and links no C
	Modules string // file that lists the third-party modules it may link
}

// Config says what Load looks at.
type Config struct {
	Dir      string // folder of the module's go.mod
	Tags     string // build tags, so that tagged tests are seen too
	Binaries []Binary
}

// Repo is what the go command says of a module.
type Repo struct {
	Module   string // the module's path
	Packages []*Package
	Linked   map[string][]*Package // by Binary.Package; nil where the binary is missing
	Config   Config
}

// Package is one package as `go list -json` describes it.
type Package struct {
	ImportPath   string
	Dir          string
	Name         string
	Standard     bool
	GoFiles      []string
	CgoFiles     []string
	TestGoFiles  []string
	XTestGoFiles []string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Module       *struct {
		Path string
		Main bool
	}
	Error *struct{ Err string }
}

// Finding is one breach of one rule.
type Finding struct {
	Rule  string // the rule's ID
	Where string // package, file or binary
	What  string
	Why   string
}

// String reads as one complaint with its reason below.
func (f Finding) String() string {
	return fmt.Sprintf("%s: %s (%s)\n\twhy: %s", f.Where, f.What, f.Rule, f.Why)
}

// Load lists the module in cfg.Dir. Packages that do not parse are returned
// with their Error, for the rule "loads"; a binary whose folder is missing has
// no entry in Linked, for the rule "binaries".
func Load(ctx context.Context, cfg Config) (*Repo, error) {
	local, err := list(ctx, cfg, nil, "./...")
	if err != nil {
		return nil, err
	}
	r := &Repo{Packages: local, Linked: map[string][]*Package{}, Config: cfg}
	for _, p := range local {
		if p.Module != nil && p.Module.Main {
			r.Module = p.Module.Path
			break
		}
	}
	if r.Module == "" {
		return nil, fmt.Errorf("no package of a main module below %s", cfg.Dir)
	}
	for _, b := range cfg.Binaries {
		if _, err := os.Stat(filepath.Join(cfg.Dir, b.Package)); errors.Is(err, os.ErrNotExist) {
			continue
		}
		// For one platform, so that the lists of modules are the same everywhere.
		// With cgo on, also for the static ones: a package that has C to offer
		// shows it only then.
		linked, err := list(ctx, cfg, []string{"GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=1"}, "-deps", "./"+b.Package)
		if err != nil {
			return nil, err
		}
		r.Linked[b.Package] = linked
	}
	return r, nil
}

func list(ctx context.Context, cfg Config, env []string, args ...string) ([]*Package, error) {
	fields := "-json=ImportPath,Dir,Name,Standard,GoFiles,CgoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports,Module,Error"
	args = append([]string{"list", "-e", "-tags", cfg.Tags, fields}, args...)
	command := exec.CommandContext(ctx, "go", args...) //nolint:gosec // arguments come from tests
	command.Dir = cfg.Dir
	command.Env = append(os.Environ(), env...)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	var packages []*Package
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(Package)
		if err := dec.Decode(p); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, fmt.Errorf("read the answer of go list: %w", err)
		}
		packages = append(packages, p)
	}
}

// Check returns every breach of every rule, ordered by rule and place.
func Check(r *Repo) []Finding {
	var all []Finding
	for _, rule := range Rules() {
		found := rule.find(r)
		for i := range found {
			found[i].Rule = rule.ID
			if found[i].Why == "" {
				found[i].Why = rule.Why
			}
		}
		slices.SortFunc(found, func(a, b Finding) int {
			return cmp.Or(strings.Compare(a.Where, b.Where), strings.Compare(a.What, b.What))
		})
		all = append(all, found...)
	}
	return all
}

// Modules returns the third-party modules that binary links, sorted.
func (r *Repo) Modules(binary string) []string {
	var paths []string
	for _, p := range r.Linked[binary] {
		if p.Module != nil && !p.Module.Main {
			paths = append(paths, p.Module.Path)
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// local returns an import path below the module's, and whether it is one.
func (r *Repo) local(importPath string) (string, bool) {
	if importPath == r.Module {
		return ".", true
	}
	return strings.CutPrefix(importPath, r.Module+"/")
}

// within reports whether p is root or lies below it.
func within(p, root string) bool {
	return p == root || strings.HasPrefix(p, root+"/")
}

// parentOf returns the first n elements of p.
func parentOf(p string, n int) string {
	return path.Join(strings.SplitN(p, "/", n+1)[:n]...)
}
