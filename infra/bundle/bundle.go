// Package bundle is what a host needs beside the image: the compose files, the
// Caddyfile and the update timer, as they are at this build's version.
//
// They are inside the image (`agnesctl host bundle`), so that one digest governs
// a host: a deployment writes the files of the image that it is about to start.
// What is the customer's is none of them and stays untouched: .env,
// docker-compose.override.yml, config/ and custom-connectors/.
//
// The copies here are made by go generate from the files at the root of the
// repository, which are what a clone runs with. The units below systemd/ are
// written here.
package bundle

import (
	"archive/tar"
	"bytes"
	"embed"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/keboola/agnes-the-ai-analyst/internal/buildinfo"
)

//go:generate cp ../../docker-compose.yml ../../docker-compose.prod.yml ../../docker-compose.override.yml.example ../../Caddyfile .

//go:embed docker-compose.yml docker-compose.prod.yml docker-compose.override.yml.example Caddyfile systemd
var content embed.FS

// File is one file of the bundle.
type File struct {
	Name string // slash-separated, below the host's folder
	Mode fs.FileMode
	Data []byte
}

// Program is where a host has the agnesctl of its bundle.
const Program = "bin/agnesctl"

// Version is the bundle's version: the build's that it is embedded in.
func Version(getenv func(string) string) string { return buildinfo.Get(getenv).Version }

// Files returns the bundle's files by name, without Program.
func Files() []File {
	var files []File
	err := fs.WalkDir(content, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := content.ReadFile(name)
		files = append(files, File{Name: name, Mode: 0o644, Data: data})
		return err
	})
	if err != nil {
		panic(fmt.Sprintf("bundle: read what is embedded: %v", err)) // it cannot fail
	}
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	return files
}

// ReadProgram returns the file at path as Program of a bundle.
func ReadProgram(path string) (File, error) {
	data, err := os.ReadFile(path)
	return File{Name: Program, Mode: 0o755, Data: data}, err
}

// Change is what Write did, or would do, to one file.
type Change struct {
	Name   string `json:"name"`
	Action string `json:"action"` // created, replaced or unchanged
}

// Plan says what Write would do with files in dir.
func Plan(dir string, files []File) ([]Change, error) {
	changes := make([]Change, 0, len(files))
	for _, f := range files {
		path := filepath.Join(dir, filepath.FromSlash(f.Name))
		action := "replaced"
		switch old, err := os.ReadFile(path); {
		case os.IsNotExist(err):
			action = "created"
		case err != nil:
			return nil, err
		case bytes.Equal(old, f.Data):
			fi, err := os.Stat(path)
			if err != nil {
				return nil, err
			}
			if fi.Mode().Perm() == f.Mode {
				action = "unchanged"
			}
		}
		changes = append(changes, Change{Name: f.Name, Action: action})
	}
	return changes, nil
}

// Write makes dir hold the files. Each is replaced as a whole, so that whoever
// reads it sees the old one or the new one; a file that is as it should be is
// left alone. Nothing else in dir is touched.
func Write(dir string, files []File) ([]Change, error) {
	changes, err := Plan(dir, files)
	if err != nil {
		return nil, err
	}
	for i, f := range files {
		if changes[i].Action == "unchanged" {
			continue
		}
		path := filepath.Join(dir, filepath.FromSlash(f.Name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return changes[:i], err
		}
		if err := replace(path, f); err != nil {
			return changes[:i], err
		}
	}
	return changes, nil
}

func replace(path string, f File) error {
	pending, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(f.Mode))
	if err != nil {
		return err
	}
	defer func() { _ = pending.Cleanup() }()
	if _, err := pending.Write(f.Data); err != nil {
		return err
	}
	return pending.CloseAtomicallyReplace()
}

// Tar writes the files as a tar archive. The same files make the same bytes.
func Tar(w io.Writer, files []File) error {
	archive := tar.NewWriter(w)
	for _, f := range files {
		header := &tar.Header{Name: f.Name, Mode: int64(f.Mode), Size: int64(len(f.Data)), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		if _, err := archive.Write(f.Data); err != nil {
			return err
		}
	}
	return archive.Close()
}
