package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

const maxLoginsFile = 1 << 20

// logins is the file $XDG_CONFIG_HOME/agnesctl/logins.yaml, mode 0600.
type logins struct {
	Current string           `yaml:"current"` // address of the last login
	Logins  map[string]login `yaml:"logins"`  // by address, as api.ParseURL writes it
}

type login struct {
	Email     string    `yaml:"email"`
	Role      string    `yaml:"role"`
	Token     string    `yaml:"token"`
	ExpiresAt time.Time `yaml:"expires_at"`
}

func (a *app) loginsPath() (string, error) {
	dir := a.env.Getenv("XDG_CONFIG_HOME")
	if dir == "" {
		home := a.env.Getenv("HOME")
		if home == "" {
			return "", problem.New(problem.Usage, "Neither XDG_CONFIG_HOME nor HOME says where logins are kept.", "Set HOME, or give --url and --token-file.")
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "agnesctl", "logins.yaml"), nil
}

// readLogins returns the saved logins, none when there is no file. A file that
// others may read is refused.
func (a *app) readLogins() (*logins, error) {
	path, err := a.loginsPath()
	if err != nil {
		return nil, err
	}
	saved := &logins{Logins: map[string]login{}}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return saved, nil
	}
	if err != nil {
		return nil, problem.Wrap(err, problem.Unavailable, "The saved logins cannot be read.", "Check "+path+", or give --url and --token-file.")
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return nil, problem.Wrap(err, problem.Unavailable, "The saved logins cannot be read.", "Check "+path+".")
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, problem.New(problem.Refused,
			fmt.Sprintf("%s holds tokens and has mode %#o: others on this machine may read it.", path, mode),
			"chmod 600 "+shellQuote(path))
	}
	data, err := io.ReadAll(io.LimitReader(file, maxLoginsFile))
	if err == nil {
		err = yaml.UnmarshalWithOptions(data, saved, yaml.Strict())
	}
	if err != nil {
		// The decoder quotes the lines around a fault, and a line may hold a token.
		return nil, problem.New(problem.Invalid, "Expected saved logins as YAML in "+path+", found something else.",
			"Remove the file and sign in again: agnesctl instance token --email YOU@COMPANY")
	}
	if saved.Logins == nil {
		saved.Logins = map[string]login{}
	}
	return saved, nil
}

// saveLogin keeps a login for an address and makes it the current one. It
// returns the file's path. Other logins stay, also when two processes save at
// the same time.
func (a *app) saveLogin(address string, t *api.TokenResponse) (string, error) {
	path, err := a.loginsPath()
	if err != nil {
		return "", err
	}
	if err := a.replaceLogin(path, address, t); err != nil {
		if e, ok := errors.AsType[*problem.Error](err); ok {
			return "", e
		}
		return "", problem.Wrap(err, problem.Unavailable, "The login cannot be saved in "+path+".", "Make the folder writable, or print the token with --print.")
	}
	return path, nil
}

func (a *app) replaceLogin(path, address string, t *api.TokenResponse) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "logins.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }() // which releases the lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	saved, err := a.readLogins()
	if err != nil {
		return err
	}
	saved.Current = address
	saved.Logins[address] = login{Email: t.Email, Role: t.Role, Token: t.AccessToken, ExpiresAt: t.ExpiresAt}
	data, err := yaml.Marshal(saved)
	if err != nil {
		return err
	}
	return renameio.WriteFile(path, data, 0o600, renameio.WithTempDir(dir))
}
