// Package offsite keeps encrypted copies of backups away from the host.
//
// A Target is a place outside: another disk, a bucket, an SFTP server. Each
// technology is a sub-package that knows nothing but its own protocol and this
// package. A Vault is what an instance does with a target: seal a backup for
// its recipients, put it there, list, fetch, and forget what is too old.
//
//	folder/   another mounted disk
//	s3/       S3 and what speaks like it
//	gcs/      Google Cloud Storage, by its JSON API
//	sftp/     an SSH server with a pinned host key
//
// What leaves the host is encrypted with age to public keys (Recipients); the
// private keys (Identities) are never on the host. In clear text a target sees
// the instance's ID, the backup's ID, its size and its age: the name of an
// object is INSTANCE/agnes-ID.tar.zst.age, below the path of the target's URL.
package offsite

import (
	"context"
	"io"
	"regexp"
	"strings"
	"time"
)

// Target is a place for objects outside of the host. Implementations are safe
// for use by several goroutines.
//
// Every method tries again by itself what may pass (Retry), and returns a
// problem.Error with one of the codes of this package and the next step.
type Target interface {
	// Put stores an object of exactly size bytes from r. It appears whole or not
	// at all, and is never replaced: where the name is taken the error has
	// CodeExists. What was received is checked before the name appears, or the
	// object is removed again.
	Put(ctx context.Context, name string, size int64, r io.Reader) error
	// Get reads an object from an offset on. CodeNoObject where there is none.
	Get(ctx context.Context, name string, offset int64) (io.ReadCloser, error)
	// List returns all objects whose names begin with prefix, in order of name.
	List(ctx context.Context, prefix string) ([]Object, error)
	// Delete removes an object; one that is gone already is no error.
	Delete(ctx context.Context, name string) error
	// Close ends connections.
	Close() error
}

// Object is what a Target holds under a name.
type Object struct {
	Name   string
	Size   int64
	Stored time.Time // as the target says; its clock, not ours
}

// Copy is one backup at a target.
type Copy struct {
	Instance string    `json:"instance_id"`
	ID       string    `json:"id"`
	Size     int64     `json:"size_bytes"` // sealed
	Stored   time.Time `json:"stored_at"`
}

// Name is the name of the copy's object.
func (c Copy) Name() string { return c.Instance + "/" + filePrefix + c.ID + fileSuffix }

// Made is when the backup was made, which its ID says; the target's time where
// it does not.
func (c Copy) Made() time.Time {
	stamp, _, _ := strings.Cut(c.ID, "-")
	if at, err := time.Parse("20060102T150405Z", stamp); err == nil {
		return at
	}
	return c.Stored
}

const (
	filePrefix = "agnes-"
	fileSuffix = ".tar.zst.age"
)

// validName is what an instance's or a backup's ID may be. Nothing that a file
// system, a URL or a shell reads in its own way gets into a name.
func validName(s string) bool {
	return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`).MatchString(s)
}

// parseCopy reads an object's name. ok is false for everything that is not a
// backup of ours: it is never listed, and never deleted.
func parseCopy(o Object) (c Copy, ok bool) {
	instance, file, found := strings.Cut(o.Name, "/")
	id, isAge := strings.CutSuffix(file, fileSuffix)
	id, isAgnes := strings.CutPrefix(id, filePrefix)
	if !found || !isAge || !isAgnes || !validName(instance) || !validName(id) {
		return Copy{}, false
	}
	return Copy{Instance: instance, ID: id, Size: o.Size, Stored: o.Stored}, true
}
