package fleet

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Bounds of what is read. A fleet of 10,000 has some 2.5 MB.
const (
	inventoryLimit   = 16 << 20
	inventoriesLimit = 64 << 20 // of all files together
	includeDepth     = 8
)

// tree is where the files of an inventory come from. Names are relative to the
// folder of the root file, with slashes, and never lead out of it.
type tree struct {
	shown func(name string) string // as people name the file
	read  func(name string) ([]byte, error)
	list  func(dir string) ([]string, error) // names of files, sorted
	ca    func(name string) string           // path for TLS.CAFile
}

// Load reads the inventory at path and all that it includes from a working tree.
// What is wrong is one problem.Usage with file, line and column, or one that holds
// all of them.
func Load(path string, o LoadOptions) (*Inventory, error) {
	dir, name := filepath.Split(filepath.Clean(path))
	if dir == "" {
		dir = "."
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, missing(path, err)
	}
	defer root.Close()
	if o.SecretDir == "" {
		o.SecretDir = dir
	}
	shown := func(name string) string { return filepath.Join(dir, filepath.FromSlash(name)) }
	return load(name, tree{
		shown: shown,
		ca: func(name string) string {
			if absolute, err := filepath.Abs(shown(name)); err == nil {
				return absolute
			}
			return shown(name)
		},
		read: func(name string) ([]byte, error) { return readRegular(root, name) },
		list: func(dir string) ([]string, error) {
			entries, err := fs.ReadDir(root.FS(), dir)
			var names []string
			for _, e := range entries {
				if !e.IsDir() {
					names = append(names, e.Name())
				}
			}
			return names, err
		},
	}, o)
}

// missing says that there is no inventory at path.
func missing(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // adds nothing
	}
	return problem.Wrap(err, problem.Usage, "expected the fleet's inventory at "+path+", found none that can be read", "Name it: agnesctl fleet list -f FILE. docs/fleet.md shows how to begin.")
}

var (
	errTooLarge   = errors.New("it is too large")
	errNotRegular = errors.New("it is no regular file")
)

// readRegular reads a file below root, links followed.
func readRegular(root *os.Root, name string) ([]byte, error) {
	info, err := root.Stat(name) // first: to open a pipe would wait for its writer
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errNotRegular
	}
	file, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return readLimited(file)
}

func readLimited(r io.Reader) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(r, inventoryLimit+1))
	if err == nil && len(content) > inventoryLimit {
		err = errTooLarge
	}
	return content, err
}

// loader follows includes and gathers what the files say.
type loader struct {
	tree   tree
	o      LoadOptions
	faults *faults
	found  *Inventory

	part        *shape
	read        map[string]bool // files
	looked      []string        // folders of patterns
	bytes       int
	names       map[string]Position
	hosts       map[string]Position // by address and folder
	authorities map[string]string   // PEM files; empty for one that cannot be used
}

func load(name string, t tree, o LoadOptions) (*Inventory, error) {
	content, err := t.read(name)
	if err != nil {
		return nil, missing(t.shown(name), err)
	}
	l := &loader{
		tree: t, o: o, faults: &faults{}, found: &Inventory{Image: DefaultImage}, part: partShape(),
		read: map[string]bool{}, names: map[string]Position{}, hosts: map[string]Position{}, authorities: map[string]string{},
	}
	root := l.file(name, content, rootShape(), nil)
	if image := root.get(keyImage); image.set {
		l.found.Image = image.text
	}
	l.addRollout(root.get(keyRollout))
	l.addWaves(root.get(keyWaves))
	l.addWatching(root, name)
	if err := l.faults.err(); err != nil {
		return nil, err
	}
	for _, names := range []iter.Seq[string]{maps.Keys(l.read), maps.Keys(l.authorities), slices.Values(l.looked)} {
		for name := range names {
			l.found.Files = append(l.found.Files, l.tree.shown(name))
		}
	}
	slices.Sort(l.found.Files)
	return l.found, nil
}

// file takes one file's content in, then the files that it includes.
func (l *loader) file(name string, content []byte, s *shape, above []string) datum {
	l.read[name] = true
	d := &decoder{file: l.tree.shown(name), faults: l.faults}
	if l.bytes += len(content); l.bytes > inventoriesLimit {
		l.faults.add(Position{File: d.file}, fmt.Sprintf("expected at most %d MB in all files together, found more", inventoriesLimit>>20), "")
		return datum{}
	}
	top := d.decode(content, s)
	defaults := top.get(keyDefaults)
	for _, one := range top.get(keyInstances).list {
		if one.set {
			l.addInstance(one, defaults, name)
		}
	}
	for _, one := range top.get(keyInclude).list {
		if one.set {
			l.include(one, name, append(slices.Clone(above), name))
		}
	}
	return top
}

// include reads the files of one entry of include; above are those that led here,
// the root file first.
func (l *loader) include(entry datum, from string, above []string) {
	pattern := path.Join(path.Dir(from), entry.text)
	if !fs.ValidPath(pattern) || strings.ContainsAny(entry.text, "\\\x00") {
		l.faults.add(entry.at, fmt.Sprintf("expected a file below the folder of the first file, found %q", entry.text), "Move the file there.")
		return
	}
	if len(above) > includeDepth {
		l.faults.add(entry.at, fmt.Sprintf("expected at most %d files that include each other, found more", includeDepth), "Include the files from the first one.")
		return
	}
	names := []string{pattern}
	if strings.ContainsAny(pattern, "*?[") {
		if names = l.matching(pattern, entry); names == nil {
			return
		}
	}
	for _, name := range names {
		switch {
		case slices.Contains(above, name):
			l.faults.add(entry.at, fmt.Sprintf("expected no file to include itself, found %s -> %s", strings.Join(above, " -> "), name), "Put what is included into a folder of its own: include: [customers/*.yaml]")
			continue
		case l.read[name]:
			l.faults.add(entry.at, fmt.Sprintf("expected each file to be included once, found %s again", name), "Remove one of the two entries.")
			continue
		case len(l.read) > maxIncludes:
			l.faults.add(entry.at, fmt.Sprintf("expected at most %d files, found more", maxIncludes), "Put several instances into a file.")
			return
		}
		content, err := l.tree.read(name)
		if err != nil {
			l.read[name] = true
			l.faults.wrap(entry.at, fmt.Sprintf("expected a file that can be read at %s", l.tree.shown(name)), "Write the path relative to "+l.tree.shown(from)+".", plainCause(err))
			continue
		}
		l.file(name, content, l.part, above)
	}
}

// plainCause leaves out the path, which the message names.
func plainCause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

// matching returns the files that a pattern stands for, or nil after a fault.
func (l *loader) matching(pattern string, entry datum) []string {
	dir, base := path.Split(pattern)
	dir = path.Clean("./" + dir)
	if _, err := path.Match(base, ""); err != nil || strings.ContainsAny(dir, "*?[") {
		l.faults.add(entry.at, fmt.Sprintf("expected a pattern in the last element only, found %q", entry.text), "Write it as customers/*.yaml.")
		return nil
	}
	l.looked = append(l.looked, dir)
	all, err := l.tree.list(dir)
	var names []string
	for _, name := range all {
		if match, _ := path.Match(base, name); match && !strings.HasPrefix(name, ".") {
			names = append(names, path.Join(dir, name))
		}
	}
	if len(names) == 0 {
		l.faults.wrap(entry.at, fmt.Sprintf("expected files that match %s, found none", l.tree.shown(pattern)), "Remove the entry, or add a file.", plainCause(err))
	}
	return names
}

// certificates returns the content of a PEM file that one entry names.
func (l *loader) certificates(entry datum, from string) (shown, content string) {
	name := path.Join(path.Dir(from), entry.text)
	if !fs.ValidPath(name) || strings.ContainsAny(entry.text, "\\\x00") {
		l.faults.add(entry.at, fmt.Sprintf("ca: expected a file below the folder of the first file, found %q", entry.text), "Move the file there.")
		return "", ""
	}
	content, known := l.authorities[name]
	if known {
		return l.tree.ca(name), content
	}
	read, err := l.tree.read(name)
	switch {
	case err != nil:
		l.faults.wrap(entry.at, fmt.Sprintf("ca: expected a PEM file that can be read at %s", l.tree.shown(name)), "Write the path relative to "+l.tree.shown(from)+".", plainCause(err))
	case !holdsCertificates(read):
		l.faults.add(entry.at, fmt.Sprintf("ca: expected certificates in PEM form, and nothing else, in %s", l.tree.shown(name)), "openssl x509 -in "+l.tree.shown(name)+" -noout -text")
	default:
		content = string(read)
	}
	l.authorities[name] = content
	return l.tree.ca(name), content
}

// holdsCertificates reports whether every block of a PEM file is a certificate.
func holdsCertificates(content []byte) bool {
	found := false
	for len(bytes.TrimSpace(content)) > 0 {
		block, rest := pem.Decode(content)
		if block == nil {
			return found
		}
		if _, err := x509.ParseCertificate(block.Bytes); block.Type != "CERTIFICATE" || err != nil {
			return false
		}
		found, content = true, rest
	}
	return found
}

// LoadGit reads the inventory at path of one revision of a repository: a URL, or a
// folder with a clone. ref is a branch, a tag, a commit or what git calls a
// revision, such as HEAD~3; nothing is HEAD. Nothing is written to disk.
//
// Secrets come from o.SecretDir and o.Getenv alone, never from git.
func LoadGit(ctx context.Context, repository, ref, file string, o LoadOptions) (*Inventory, error) {
	file = path.Clean(filepath.ToSlash(file))
	if !fs.ValidPath(file) || file == "." {
		return nil, problem.New(problem.Usage, fmt.Sprintf("expected the inventory's path inside the repository, found %q", file), "Write it as fleet.yaml or ops/fleet.yaml.")
	}
	r, err := openRevision(ctx, repository, ref, o.GitToken)
	if err != nil {
		return nil, err
	}
	return load(path.Base(file), r.tree(path.Dir(file)), o)
}

// LoadAt reads what Load would have read at a revision of the clone that the file
// is in. Secrets are those of the working tree.
func LoadAt(ctx context.Context, file, ref string, o LoadOptions) (*Inventory, error) {
	root, inside, err := inClone(file)
	if err != nil {
		return nil, problem.Wrap(err, problem.Usage, "expected "+file+" in the working tree of a git repository", "Name the repository: --git URL")
	}
	if o.SecretDir == "" {
		o.SecretDir = filepath.Dir(file)
	}
	return LoadGit(ctx, root, ref, inside, o)
}

// isURL reports whether a repository is one to fetch from, and no folder.
func isURL(repository string) bool {
	if u, err := url.Parse(repository); err == nil && u.Scheme != "" && u.Host != "" && u.Scheme != "file" {
		return true
	}
	host, _, scp := strings.Cut(repository, ":")
	return scp && !strings.ContainsAny(host, `/\`) && len(host) > 1 && !strings.HasPrefix(repository, "file://")
}
