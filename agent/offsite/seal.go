package offsite

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"golang.org/x/crypto/ssh"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// Recipients are the public keys that a backup is encrypted to. Each of their
// owners can open it alone.
type Recipients struct{ list []age.Recipient }

const recipientHint = "Make a key pair (agnes backup keygen --out identity.age), then set AGNES_BACKUP_RECIPIENTS to the age1… line that it prints."

// ParseRecipients reads public keys: age1…, or ssh-ed25519 lines, separated by
// commas or lines; # begins a comment. Text that names a file, with a slash in
// it and no key, is that file's content. No key at all is a problem.Usage:
// nothing leaves the host in clear text.
func ParseRecipients(text string) (*Recipients, error) {
	if strings.Contains(text, "AGE-SECRET-KEY-") {
		return nil, problem.New(problem.Usage, "AGNES_BACKUP_RECIPIENTS holds a private key; expected public ones.",
			"Whoever reads this host can open backups that are encrypted to it. Make a new pair on another machine (agnes backup keygen), and set its age1… line here.")
	}
	if path := strings.TrimSpace(text); strings.HasPrefix(path, "/") || strings.HasPrefix(path, "./") {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, problem.Wrap(err, problem.Usage, "The file with the recipients of backups cannot be read", "Make it readable, or set AGNES_BACKUP_RECIPIENTS to the age1… keys themselves.")
		}
		text = string(data)
	}
	out := &Recipients{}
	for _, line := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == '\n' || r == '\r' }) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		r, err := parseRecipient(line)
		if err != nil {
			return nil, problem.Wrap(err, problem.Usage, fmt.Sprintf("The recipient %.20q of backups is no public key; expected age1… or ssh-ed25519 …", line), recipientHint)
		}
		out.list = append(out.list, r)
	}
	if len(out.list) == 0 {
		return nil, problem.New(problem.Usage, "No recipient is set, and a backup leaves the host encrypted or not at all.", recipientHint).WithCode("backup_no_recipients")
	}
	return out, nil
}

func parseRecipient(line string) (age.Recipient, error) {
	if strings.HasPrefix(line, "ssh-ed25519 ") {
		return agessh.ParseRecipient(line)
	}
	list, err := age.ParseRecipients(strings.NewReader(line))
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// Count is how many can open a backup.
func (r *Recipients) Count() int { return len(r.list) }

// Sizes of age's payload, github.com/C2SP/C2SP/blob/main/age.md: a nonce, then
// chunks with a tag each; an empty payload has one empty chunk.
const (
	ageChunk = 64 << 10
	ageNonce = 16
	ageTag   = 16
)

// Seal returns plain encrypted, as it is read, and the size that this will
// have where plain has the given one.
func (r *Recipients) Seal(plain io.Reader, size int64) (sealed io.Reader, sealedSize int64, err error) {
	empty, err := age.EncryptReader(strings.NewReader(""), r.list...)
	if err != nil {
		return nil, 0, fmt.Errorf("encrypt for the recipients: %w", err)
	}
	header, err := io.Copy(io.Discard, empty)
	if err != nil {
		return nil, 0, err
	}
	header -= ageNonce + ageTag
	sealed, err = age.EncryptReader(plain, r.list...)
	if err != nil {
		return nil, 0, fmt.Errorf("encrypt for the recipients: %w", err)
	}
	chunks := max(1, (size+ageChunk-1)/ageChunk)
	return sealed, header + ageNonce + size + chunks*ageTag, nil
}

// Identities are private keys.
type Identities struct{ list []age.Identity }

// LoadIdentities reads private keys from a file: what agnes backup keygen
// wrote, or an SSH private key without a passphrase.
func LoadIdentities(path string) (*Identities, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, problem.Wrap(err, problem.Usage, "The identity file cannot be read", "Give the file that agnes backup keygen wrote: --identity FILE")
	}
	if bytes.HasPrefix(data, []byte("-----BEGIN OPENSSH PRIVATE KEY-----")) {
		id, err := agessh.ParseIdentity(data)
		if _, locked := errors.AsType[*ssh.PassphraseMissingError](err); locked {
			return nil, problem.New(problem.Usage, fmt.Sprintf("The SSH key %s is locked with a passphrase.", path),
				"Make an unlocked copy: cp KEY KEY.open && ssh-keygen -p -N '' -f KEY.open, use it, then delete it.")
		}
		if err != nil {
			return nil, notIdentity(path)
		}
		return &Identities{list: []age.Identity{id}}, nil
	}
	if bytes.HasPrefix(data, []byte("age-encryption.org/")) || bytes.HasPrefix(data, []byte("-----BEGIN AGE ENCRYPTED FILE-----")) {
		return nil, problem.New(problem.Usage, fmt.Sprintf("The identity file %s is encrypted itself.", path),
			fmt.Sprintf("Open it first: age -d -o identity.open %s, use that, then delete it.", path))
	}
	list, err := age.ParseIdentities(bufio.NewReader(bytes.NewReader(data)))
	if err != nil {
		return nil, notIdentity(path) // age's own error may quote the key
	}
	return &Identities{list: list}, nil
}

func notIdentity(path string) error {
	return problem.New(problem.Usage, fmt.Sprintf("Expected private keys in %s (AGE-SECRET-KEY-1…, or an SSH ed25519 key), found something else.", path),
		"Give the file that agnes backup keygen wrote: --identity FILE")
}

// Open decrypts. Reading returns an error where a single byte was changed, or
// the end is missing.
func (i *Identities) Open(sealed io.Reader) (io.Reader, error) {
	plain, err := age.Decrypt(sealed, i.list...)
	if _, none := errors.AsType[*age.NoIdentityMatchError](err); none {
		return nil, problem.New(problem.Forbidden, "This backup was not encrypted to the given identity.",
			"Give the identity of one of its recipients, which after a rotation is the one from then: --identity OLD_FILE").WithCode("backup_wrong_identity")
	}
	if p, ok := errors.AsType[*problem.Error](err); ok {
		return nil, p
	}
	if err != nil {
		return nil, damaged(err)
	}
	return opened{plain}, nil
}

// opened says what age's errors mean for a person.
type opened struct{ r io.Reader }

// Read implements io.Reader.
func (o opened) Read(p []byte) (int, error) {
	n, err := o.r.Read(p)
	if err == nil || err == io.EOF { // a wrapped one is a cut, not the end
		return n, err
	}
	if _, ok := errors.AsType[*problem.Error](err); ok {
		return n, err
	}
	return n, damaged(err)
}

func damaged(err error) error {
	return problem.Wrap(err, problem.Found, "The backup at the target is damaged or was changed: it cannot be decrypted whole",
		"Take another one: agnes backup list --target URL").WithCode(CodeDamaged)
}

// NewIdentity makes a key pair. The file is what belongs off the host.
func NewIdentity(now time.Time) (recipient string, file redact.Secret, err error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return "", "", err
	}
	recipient = id.Recipient().String()
	return recipient, redact.Secret(fmt.Sprintf("# created: %s\n# public key: %s\n%s\n", now.UTC().Format(time.RFC3339), recipient, id)), nil
}

func plural(n int64) string {
	if n == 1 {
		return "1 byte"
	}
	return fmt.Sprintf("%d bytes", n)
}
