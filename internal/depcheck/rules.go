package depcheck

import (
	"errors"
	"fmt"
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Rule is one sentence about the module that can be checked.
type Rule struct {
	ID  string
	Why string

	find func(*Repo) []Finding
}

const duckdb = "github.com/duckdb/"

// Rules returns all rules in the order in which Check reports them.
func Rules() []Rule {
	return []Rule{
		{"loads", "a package that does not load cannot be checked", loads},
		{"layers", "", imports}, // each layer has its own reason
		{"placed", "the layout tells the story: a package outside it belongs to no chapter", placed},
		{"cmd", "cmd wires the parts into programs; a part that imported it could not be used without that program", importsCmd},
		{"binaries", "a binary that is listed is promised to people", missing},
		{"duckdb", "DuckDB is C++ and a hundred megabytes: only the instance needs it, and CLIs must install as one static file", reachesDuckDB},
		{"static", "a CGO_ENABLED=0 build silently drops code that needs cgo, or fails far from the cause", linksC},
		{"modules", "each dependency is code that we answer for; a new one is a decision, and a line in the README's table", linksModules},
		{"names", "a package called for what it holds, not for what it does, collects everything", names},
		{"comments", "each package opens with what it is for and how its parts fit: the code is read more often than written", comments},
		{"init", "init() runs before main can pass anything in, and its order is nobody's: cmd lists what is wired", inits},
	}
}

func loads(r *Repo) (found []Finding) {
	for _, p := range r.Packages {
		if p.Error != nil {
			found = append(found, Finding{Where: p.ImportPath, What: p.Error.Err})
		}
	}
	return found
}

func imports(r *Repo) (found []Finding) {
	for _, p := range r.Packages {
		from, _ := r.local(p.ImportPath)
		l, ok := find(from)
		if !ok {
			continue
		}
		for _, imp := range p.Imports {
			if to, ok := r.local(imp); ok && !l.allows(from, to) {
				found = append(found, Finding{Where: from, What: "imports " + to, Why: l.why})
			}
		}
	}
	return found
}

func placed(r *Repo) (found []Finding) {
	for _, p := range r.Packages {
		if at, _ := r.local(p.ImportPath); at != "" {
			if _, ok := find(at); !ok {
				found = append(found, Finding{Where: at, What: "lies in no part of the house that docs/architecture.md describes"})
			}
		}
	}
	return found
}

// importsCmd looks at tests too: a program is tested from inside its folder.
func importsCmd(r *Repo) (found []Finding) {
	for _, p := range r.Packages {
		from, _ := r.local(p.ImportPath)
		for _, imp := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			to, ok := r.local(imp)
			if !ok || !within(to, "cmd") {
				continue
			}
			if within(from, "cmd") && strings.Count(to, "/") > 0 && within(from, parentOf(to, 2)) {
				continue
			}
			found = append(found, Finding{Where: from, What: "imports " + to})
		}
	}
	return found
}

func missing(r *Repo) (found []Finding) {
	for _, b := range r.Config.Binaries {
		if r.Linked[b.Package] == nil {
			found = append(found, Finding{Where: b.Package, What: "is missing"})
		}
	}
	return found
}

func reachesDuckDB(r *Repo) (found []Finding) {
	for _, b := range r.Config.Binaries {
		if !b.Static {
			continue
		}
		if i := slices.IndexFunc(r.Linked[b.Package], func(p *Package) bool { return strings.HasPrefix(p.ImportPath, duckdb) }); i >= 0 {
			target := r.Linked[b.Package][i].ImportPath
			found = append(found, Finding{Where: b.Package, What: "reaches DuckDB: " + r.chain(b.Package, target)})
		}
	}
	return found
}

// linksC spares the standard library, whose cgo parts have pure Go twins.
func linksC(r *Repo) (found []Finding) {
	for _, b := range r.Config.Binaries {
		if !b.Static {
			continue
		}
		for _, p := range r.Linked[b.Package] {
			if !p.Standard && len(p.CgoFiles) > 0 {
				found = append(found, Finding{Where: b.Package, What: "links C: " + r.chain(b.Package, p.ImportPath)})
			}
		}
	}
	return found
}

// chain returns a shortest import path from a binary to a package it links.
func (r *Repo) chain(binary, target string) string {
	byPath := map[string]*Package{}
	for _, p := range r.Linked[binary] {
		byPath[p.ImportPath] = p
	}
	start := r.Module + "/" + binary
	from := map[string]string{start: ""}
	for queue := []string{start}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		if at == target {
			var steps []string
			for ; at != ""; at = from[at] {
				steps = append(steps, strings.TrimPrefix(at, r.Module+"/"))
			}
			slices.Reverse(steps)
			return strings.Join(steps, " -> ")
		}
		for _, next := range byPath[at].importsOf() {
			if _, seen := from[next]; !seen {
				from[next] = at
				queue = append(queue, next)
			}
		}
	}
	return target
}

func (p *Package) importsOf() []string {
	if p == nil {
		return nil
	}
	return p.Imports
}

func linksModules(r *Repo) (found []Finding) {
	for _, b := range r.Config.Binaries {
		if r.Linked[b.Package] == nil || b.Modules == "" {
			continue
		}
		data, err := os.ReadFile(b.Modules)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			found = append(found, Finding{Where: b.Package, What: err.Error()})
			continue
		}
		allowed, linked := strings.Fields(string(data)), r.Modules(b.Package)
		lacks, gone := without(linked, allowed), without(allowed, linked)
		if len(lacks) > 0 {
			found = append(found, Finding{Where: b.Package, What: fmt.Sprintf("links %s, which %s lacks; if that is wanted: go test ./internal/depcheck -update", strings.Join(lacks, ", "), b.Modules)})
		}
		if len(gone) > 0 {
			found = append(found, Finding{Where: b.Package, What: fmt.Sprintf("no longer links %s, which %s lists; next: go test ./internal/depcheck -update", strings.Join(gone, ", "), b.Modules)})
		}
	}
	return found
}

// without returns the elements of a that b lacks.
func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}

func names(r *Repo) (found []Finding) {
	banned := []string{"util", "utils", "common", "helper", "helpers", "misc"}
	for _, p := range r.Packages {
		at, _ := r.local(p.ImportPath)
		for _, element := range append(strings.Split(at, "/"), strings.TrimSuffix(p.Name, "_test")) {
			if slices.Contains(banned, element) {
				found = append(found, Finding{Where: at, What: fmt.Sprintf("is called %q", element)})
				break
			}
		}
	}
	return found
}

func comments(r *Repo) (found []Finding) {
	for _, p := range r.Packages {
		if p.Name == "" {
			continue // did not load, which is said elsewhere
		}
		at, _ := r.local(p.ImportPath)
		files := slices.Concat(p.GoFiles, p.CgoFiles)
		if len(files) == 0 {
			files = slices.Concat(p.TestGoFiles, p.XTestGoFiles) // a package of tests alone
		}
		var text string
		for _, name := range files {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err == nil && file.Doc != nil {
				text += file.Doc.Text()
			}
		}
		text = strings.Join(strings.Fields(text), " ")
		first := new(doc.Package).Synopsis(text)
		switch {
		case text == "":
			found = append(found, Finding{Where: at, What: "has no package comment"})
		case len(strings.Fields(text)) < len(strings.Fields(first))+4:
			found = append(found, Finding{Where: at, What: "has a package comment of one sentence"})
		}
	}
	return found
}

func inits(r *Repo) (found []Finding) {
	for _, p := range r.Packages {
		for _, name := range slices.Concat(p.GoFiles, p.CgoFiles, p.TestGoFiles, p.XTestGoFiles) {
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, filepath.Join(p.Dir, name), nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil || ast.IsGenerated(file) {
				continue
			}
			for _, decl := range file.Decls {
				if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
					at, _ := r.local(p.ImportPath)
					found = append(found, Finding{Where: fmt.Sprintf("%s/%s:%d", at, name, set.Position(f.Pos()).Line), What: "declares init()"})
				}
			}
		}
	}
	return found
}
