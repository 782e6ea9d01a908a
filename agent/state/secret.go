package state

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// minSecret is the least length of a secret in characters: 32 random bytes are
// 43 in base64url and 64 in hex.
const minSecret = 32

// EnsureSecret returns the secret in the file at path, creating it with 32
// random bytes (base64url, mode 0600) if there is none. Whoever comes first
// wins, over all processes; a secret is never replaced. A file that others may
// read is closed to them and log says so.
func EnsureSecret(log *slog.Logger, path string) (redact.Secret, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	secret, err := readSecret(log, path)
	if !errors.Is(err, fs.ErrNotExist) {
		return secret, err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", orSystemProblem(err, dir)
	}
	random := make([]byte, 32)
	_, _ = rand.Read(random) // never fails: crypto/rand ends the process instead
	if err := createOnce(path, []byte(base64.RawURLEncoding.EncodeToString(random)+"\n")); err != nil {
		return "", orSystemProblem(err, dir)
	}
	return readSecret(log, path)
}

// createOnce creates path with data as its whole content, or leaves what is
// there. Link fails where the name exists, so no reader sees half a file.
func createOnce(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncPath(filepath.Dir(path))
}

func readSecret(log *slog.Logger, path string) (redact.Secret, error) {
	anew := fmt.Sprintf("To have a new one generated run `rm %s` and start agnes again; everyone then signs in anew.", shellQuote(path))
	fi, err := os.Stat(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		return "", orSystemProblem(err, path)
	}
	if !fi.Mode().IsRegular() {
		return "", problem.New(problem.Unavailable, fmt.Sprintf("Expected a file with a secret at %s, found something else (%s).", path, fi.Mode().Type()), anew)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", problem.Wrap(err, problem.Unavailable, fmt.Sprintf("The secret in %s cannot be read by user id %d.", path, os.Getuid()),
			fmt.Sprintf("Give it to that user: `sudo chown %d %s && sudo chmod 600 %s`.", os.Getuid(), shellQuote(path), shellQuote(path)))
	}
	value := strings.TrimSpace(string(data))
	if len(value) < minSecret {
		return "", problem.New(problem.Unavailable,
			fmt.Sprintf("Expected a secret of at least %d characters in %s, found %d.", minSecret, path, len(value)), anew)
	}
	if fi.Mode().Perm()&0o077 != 0 {
		if err := os.Chmod(path, 0o600); err != nil {
			return "", problem.Wrap(err, problem.Unavailable,
				fmt.Sprintf("The secret in %s is open to other users (mode %04o) and could not be closed.", path, fi.Mode().Perm()),
				fmt.Sprintf("Close it: `sudo chmod 600 %s`. If others may have read it, %s", shellQuote(path), strings.ToLower(anew[:1])+anew[1:]))
		}
		log.Warn("a secret was open to other users; its mode is now 0600", "path", path, "mode", fmt.Sprintf("%04o", fi.Mode().Perm()))
	}
	return redact.Secret(value), nil
}
