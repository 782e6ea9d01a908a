package fleet

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// tokenLimit bounds a token's file.
const tokenLimit = 16 << 10

// Token says where an instance's access token is. It holds no secret: Read gets
// it each time, so that a rotated one counts at once. The zero Token is none.
type Token struct {
	text     string // as the inventory has it: ${file:secrets/acme.token}
	instance string
	at       Position

	literal bool // text is the value itself: an address that is no secret

	file   string // below dir
	dir    string // empty: files cannot be read
	env    string
	getenv func(string) string
}

// IsZero reports whether the inventory names no token.
func (t Token) IsZero() bool { return t.text == "" }

// String returns what the inventory says, which is no secret.
func (t Token) String() string { return t.text }

// MarshalText writes what String returns.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.text), nil }

var tokenText = regexp.MustCompile(`^\$\{(env:[A-Za-z_][A-Za-z0-9_]*|file:[^{}]+)\}$`)

// checkToken reports what is wrong with a token's text, without showing it: it
// may be the secret itself.
func checkToken(text string) error {
	if !tokenText.MatchString(text) {
		return problem.New(problem.Usage, "expected ${file:PATH} or ${env:NAME}, found other text, which is not shown: it may be a secret",
			"Write the token into a file that git ignores, mode 0600, and name it: token: ${file:secrets/NAME.token}")
	}
	name, isFile := tokenFile(text)
	if isFile && (path.IsAbs(name) || strings.ContainsAny(name, "\\\x00\n") || inGit(name)) {
		return outside(name)
	}
	return nil
}

func outside(name string) error {
	return problem.New(problem.Usage, fmt.Sprintf("expected a file below the inventory's folder, found %q", name),
		"Move it there, or name the folder with the secrets: --secrets DIR")
}

func tokenFile(text string) (string, bool) {
	return strings.CutPrefix(strings.TrimSuffix(strings.TrimPrefix(text, "${"), "}"), "file:")
}

// inGit reports whether a path is one of git's own: .git/config holds passwords.
func inGit(name string) bool {
	for element := range strings.SplitSeq(name, "/") {
		if strings.EqualFold(element, ".git") {
			return true
		}
	}
	return false
}

// Read returns the token. Its file must lie below the folder of secrets, links
// followed: whoever may write the inventory chooses the path, and the address
// that the token is sent to. It must belong to its owner alone, as ssh's keys do.
func (t Token) Read() (redact.Secret, error) {
	switch {
	case t.IsZero():
		return "", nil
	case t.literal:
		return redact.Secret(t.text), nil
	case t.env != "":
		return t.fromEnv()
	case t.dir == "":
		return "", t.fault(problem.Usage, "names a file, and an inventory from git has none: a secret must not come from git",
			"Say where the secrets are: --secrets DIR", nil)
	}
	shown := filepath.Join(t.dir, filepath.FromSlash(t.file))
	value, err := t.fromFile()
	switch {
	case errors.Is(err, errSecretMode):
		return "", t.fault(problem.Refused, fmt.Sprintf("others on this machine may read %s; expected mode 0600", shown), "chmod 600 "+shown, nil)
	case errors.Is(err, errSecretText):
		return "", t.fault(problem.Usage, fmt.Sprintf("expected one token in %s and nothing else", shown), "Write the token alone into the file.", nil)
	case err != nil:
		return "", t.fault(problem.Usage, fmt.Sprintf("expected a token in %s, a file below %s, but it cannot be read", shown, t.dir),
			fmt.Sprintf("agnesctl instance token --url URL --email YOU@COMPANY --print > %s; chmod 600 %s", shown, shown), err)
	}
	return value, nil
}

func (t Token) fromEnv() (redact.Secret, error) {
	value := ""
	if t.getenv != nil {
		value = t.getenv(t.env)
	}
	if value == "" {
		return "", t.fault(problem.Usage, "the variable "+t.env+" is not set", "export "+t.env+"=…", nil)
	}
	if !oneToken(value) {
		return "", t.fault(problem.Usage, "expected one token in the variable "+t.env+" and nothing else", "export "+t.env+"=…", nil)
	}
	return redact.Secret(value), nil
}

var (
	errSecretMode = errors.New("others may read it")
	errSecretText = errors.New("it holds something else than one token")
)

func (t Token) fromFile() (redact.Secret, error) {
	root, err := os.OpenRoot(t.dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	info, err := root.Stat(t.file) // first: to open a pipe would wait for its writer
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", errors.New("it is no regular file")
	}
	file, err := root.Open(t.file)
	if err != nil {
		return "", err
	}
	defer file.Close()
	if info, err = file.Stat(); err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", errSecretMode
	}
	data, err := io.ReadAll(io.LimitReader(file, tokenLimit+1))
	if err != nil {
		return "", err
	}
	value := strings.TrimSpace(string(data))
	if !oneToken(value) {
		return "", errSecretText
	}
	return redact.Secret(value), nil
}

// oneToken reports whether text can stand in an Authorization header.
func oneToken(text string) bool {
	odd := func(r rune) bool { return r <= ' ' || r > '~' }
	return text != "" && len(text) <= tokenLimit && strings.IndexFunc(text, odd) < 0
}

func (t Token) fault(kind problem.Kind, message, hint string, cause error) error {
	return problem.Wrap(cause, kind, fmt.Sprintf("%s: the token %s of %s: %s", t.at, t.text, t.instance, message), hint)
}
