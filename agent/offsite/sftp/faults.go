package sftp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/pkg/sftp"

	"github.com/keboola/agnes-the-ai-analyst/agent/offsite"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// almostFull is so little space that a write without a reason failed for it.
const almostFull = 1 << 20

func (t *Target) exists(c *sftp.Client) error {
	fi, err := c.Stat(t.dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !fi.IsDir() {
		return offsite.Fault(offsite.CodeMissing, err, fmt.Sprintf("The folder %s does not exist on %s, or is none", t.dir, t.opt.URL.Host),
			fmt.Sprintf("Make it there: mkdir -p %s && chown %s %s. A path is the one that SFTP shows, which differs where the user is locked into a folder.", t.dir, t.opt.URL.User, t.dir))
	}
	return err
}

// space asks the server for its free bytes; ok is false where it cannot say.
func space(c *sftp.Client, dir string) (free int64, ok bool) {
	if _, has := c.HasExtension("statvfs@openssh.com"); !has {
		return 0, false
	}
	s, err := c.StatVFS(dir)
	if err != nil || s.Blocks == 0 {
		return 0, false
	}
	return int64(s.Frsize * s.Bavail), true
}

func (t *Target) taken(name string) error {
	return offsite.Fault(offsite.CodeExists, nil, fmt.Sprintf("%s is at %s already.", name, t.opt.URL), "Nothing has to be done: a backup appears there whole or not at all.")
}

func (t *Target) full(err error) error {
	return offsite.Fault(offsite.CodeNoSpace, err, fmt.Sprintf("The disk of %s is full", t.opt.URL),
		"Free space there, or keep fewer backups: AGNES_BACKUP_OFFSITE_KEEP")
}

// perhapsFull asks whether a failure was one of space: SFTP calls it "Failure",
// like all that it has no word for.
func (t *Target) perhapsFull(c *sftp.Client, err error) error {
	if s, ok := errors.AsType[*sftp.StatusError](err); !ok || s.Code != statusFailure {
		return err
	}
	if free, ok := space(c, t.dir); ok && free < almostFull {
		return t.full(err)
	}
	return err
}

// loginFault says what an error of the SSH handshake means.
func (t *Target) loginFault(err error) error {
	if p, ok := errors.AsType[*problem.Error](err); ok {
		return p // the host key
	}
	switch text := err.Error(); {
	case strings.Contains(text, "unable to authenticate"):
		return offsite.Fault(offsite.CodeCredentials, err, fmt.Sprintf("The server %s does not let %s in with this key", t.opt.URL.Host, t.opt.URL.User),
			fmt.Sprintf("Add the public key (ssh-keygen -y -f KEY) to ~%s/.ssh/authorized_keys on the server.", t.opt.URL.User))
	case strings.Contains(text, "no common algorithm for host key"):
		return offsite.Fault(offsite.CodeHostKey, err, fmt.Sprintf("The server %s has no host key of the pinned kind", t.opt.URL.Host), scanHint)
	}
	return t.fault(err)
}

// fault says what an error means.
func (t *Target) fault(err error) error {
	_, known := errors.AsType[*problem.Error](err)
	switch {
	case err == nil, known, errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, fs.ErrPermission):
		return offsite.Fault(offsite.CodeCredentials, err, fmt.Sprintf("%s may not write at %s", t.opt.URL.User, t.opt.URL),
			fmt.Sprintf("Give the folder to that user on the server: chown -R %s %s", t.opt.URL.User, t.dir))
	}
	if s, ok := errors.AsType[*sftp.StatusError](err); ok && s.Code != statusFailure && s.Code != statusNoConnection && s.Code != statusConnectionLost {
		return offsite.Fault(offsite.CodeMissing, err, fmt.Sprintf("The server %s refuses what a backup needs", t.opt.URL.Host), "Use a server with OpenSSH's sftp-server, or another target.")
	}
	return offsite.Fault(offsite.CodeUnreachable, err, fmt.Sprintf("The server %s does not answer as it should", t.opt.URL.Host),
		fmt.Sprintf("Try from this host: sftp -i KEY %s@%s", t.opt.URL.User, t.opt.URL.Host))
}
