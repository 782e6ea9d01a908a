package offsite

import (
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// URL says where a target is. It holds no secret: one that is given in it is
// refused, for it would show up in process lists, shell histories and logs.
type URL struct {
	Scheme string // s3, gs, sftp or file
	User   string // sftp
	Host   string // bucket, or host[:port]
	Path   string // without a slash at either end for buckets; absolute otherwise
	params url.Values
	text   string
}

const urlForms = "s3://BUCKET/PREFIX?endpoint=…&region=…, gs://BUCKET/PREFIX, sftp://USER@HOST:PORT/PATH or file:///PATH"

// ParseURL reads the URL of a target. A wrong one is a problem.Usage; the
// message repeats nothing that could be a secret.
func ParseURL(text string) (URL, error) {
	u, err := url.Parse(strings.TrimSpace(text))
	if err != nil || u.Opaque != "" || u.Scheme == "" {
		return URL{}, badURL("The URL of the backup target cannot be read; expected " + urlForms + ".")
	}
	if _, given := u.User.Password(); given {
		return URL{}, problem.New(problem.Usage, "The URL of the backup target holds a password, which would be shown in lists and logs.",
			"Take it out of the URL; AGNES_BACKUP_S3_SECRET_ACCESS_KEY_FILE and AGNES_BACKUP_SFTP_KEY name files with secrets.")
	}
	if u.Fragment != "" {
		return URL{}, badURL("The URL of the backup target holds a #, which means nothing here; expected " + urlForms + ".")
	}
	out := URL{Scheme: u.Scheme, User: u.User.Username(), Host: u.Host, params: u.Query(), text: u.String()}
	clean := path.Clean("/" + u.Path)
	allowed := []string{}
	switch u.Scheme {
	case "s3":
		allowed = []string{"endpoint", "region"}
		out.Path = strings.Trim(clean, "/")
	case "gs":
		allowed = []string{"endpoint"}
		out.Path = strings.Trim(clean, "/")
	case "sftp":
		out.Path = clean
	case "file":
		allowed = []string{"same_disk"}
		out.Path = clean
	default:
		return URL{}, badURL(fmt.Sprintf("The backup target's URL begins with %s:, which is no target; expected %s.", u.Scheme, urlForms))
	}
	switch {
	case u.Scheme == "file" && (u.Host != "" || !strings.HasPrefix(u.Path, "/") || clean == "/"):
		return URL{}, badURL("A folder is given with three slashes and a path: file:///mnt/backup.")
	case u.Scheme != "file" && u.Host == "":
		return URL{}, badURL("The backup target's URL names no bucket or host; expected " + urlForms + ".")
	case u.Scheme == "sftp" && (out.User == "" || u.Path == "" || clean == "/"):
		return URL{}, badURL("An SFTP target needs a user and a path: sftp://USER@HOST:PORT/PATH.")
	case u.Scheme != "sftp" && u.User != nil:
		return URL{}, badURL("The backup target's URL holds a user, which only sftp:// has; expected " + urlForms + ".")
	}
	for key := range out.params {
		if !slices.Contains(allowed, key) {
			return URL{}, badURL(fmt.Sprintf("The backup target's URL has the parameter %q; expected none but %s.", key, orNone(allowed)))
		}
	}
	return out, nil
}

func badURL(message string) error {
	return problem.New(problem.Usage, message, "Set AGNES_BACKUP_TARGET, or give --target or --from, in one of these forms.")
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none at all"
	}
	return strings.Join(list, ", ")
}

// Param returns a parameter, or nothing.
func (u URL) Param(key string) string { return u.params.Get(key) }

// String returns the URL as it was given.
func (u URL) String() string { return u.text }

// Join returns the name of an object below the prefix of a bucket.
func (u URL) Join(name string) string {
	if u.Path == "" {
		return name
	}
	return u.Path + "/" + name
}

// Below takes the prefix of a bucket from an object's key.
func (u URL) Below(key string) string { return strings.TrimPrefix(key, u.Join("")) }
