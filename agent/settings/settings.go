// Package settings resolves an instance's configuration and says where each
// value came from.
//
// A value is looked for in this order, and the first one wins: command-line
// flag, environment variable, the file named by the variable with _FILE behind
// it, DATA_DIR/state/instance.yaml, default. The wizard and
// POST /api/admin/configure write only instance.yaml, so what the environment
// fixes stays fixed and configure can say so.
//
// All lists the settings; documentation, `agnes config`, the surface document
// and strict decoding of instance.yaml are derived from it.
package settings

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Keys of the settings.
const (
	DataDir       = "data_dir"
	Addr          = "addr"
	Bind          = "bind"
	Domain        = "domain"
	Bootstrap     = "bootstrap"
	JWTSecretKey  = "jwt_secret_key" //nolint:gosec // a name, not a value
	SessionSecret = "session_secret"
	DataSource    = "data_source"
	CSVDir        = "csv_dir"
	CSVOnBadRow   = "csv_on_bad_row"
	InstanceName  = "instance_name"
	AllowedDomain = "allowed_domain"
	LogLevel      = "log_level"
	LogFormat     = "log_format"
	Image         = "image"
	ImageDigest   = "image_digest"
	BundleVersion = "bundle_version"
	UpdateCheck   = "update_check"
	UpdateFailed  = "update_failed"
	ExtensionDir  = "extension_dir"

	BackupSchedule = "backup_schedule"
	BackupKeep     = "backup_keep"
	BackupExtracts = "backup_extracts"

	BackupTarget        = "backup_target"
	BackupRecipients    = "backup_recipients"
	BackupOffsiteKeep   = "backup_offsite_keep"
	BackupS3AccessKeyID = "backup_s3_access_key_id"
	BackupS3SecretKey   = "backup_s3_secret_access_key"
	BackupSFTPKey       = "backup_sftp_key"
	BackupSFTPHostKey   = "backup_sftp_host_key"

	RemoteExtensions = "remote_attach_extensions"
	RemoteTokenEnvs  = "remote_attach_token_envs"
)

// Setting describes one value of the configuration.
type Setting struct {
	Key      string   // name in instance.yaml
	Env      string   // environment variable; NAME_FILE names a file that holds the value
	Flag     string   // flag of `agnes serve`; empty where there is none
	Default  string   // value where nothing sets it
	OneOf    []string // allowed values; any text when empty
	Secret   bool     // never shown
	Stored   bool     // may stand in instance.yaml
	Recorded bool     // a fact that the deploy writes down, and no choice: not part of Hash
	Required bool     // a new required setting is a breaking change
	Help     string   // one sentence
}

// All returns every setting, in the order of the documentation.
func All() []Setting {
	return []Setting{
		{Key: DataDir, Env: "DATA_DIR", Flag: "data-dir", Default: "/data", Help: "Directory that holds everything the instance keeps."},
		{Key: Addr, Env: "AGNES_ADDR", Flag: "addr", Default: "127.0.0.1:8000", Help: "Address that the server listens on."},
		{Key: Bind, Env: "AGNES_BIND", Help: "Address that docker compose publishes the port on; anything but loopback makes setup ask for the setup token."},
		{Key: Domain, Env: "DOMAIN", Help: "Public host name behind the TLS proxy; setting it makes setup ask for the setup token."},
		{Key: Bootstrap, Env: "AGNES_BOOTSTRAP", Default: "token", OneOf: []string{"token", "open"}, Help: "open lets the first admin be created without the setup token where nobody else can reach the port."},
		{Key: JWTSecretKey, Env: "JWT_SECRET_KEY", Secret: true, Help: "Key that signs session tokens; generated into state/.jwt_secret on first start."},
		{Key: SessionSecret, Env: "SESSION_SECRET", Secret: true, Help: "Key that protects browser sessions; generated into state/.session_secret on first start."},
		{Key: DataSource, Env: "AGNES_DATA_SOURCE", Stored: true, OneOf: []string{"csv", "keboola", "bigquery", "jira", "custom", "local"}, Help: "Where tables come from."},
		{Key: CSVDir, Env: "AGNES_CSV_DIR", Flag: "csv-dir", Stored: true, Help: "Directory with CSV, TSV, JSON or Parquet files, one table a file or sub-folder."},
		{Key: CSVOnBadRow, Env: "AGNES_CSV_ON_BAD_ROW", Default: "skip", OneOf: []string{"skip", "fail"}, Stored: true, Help: "skip keeps the rest of a table and reports each bad row; fail keeps the table's last good data."},
		{Key: InstanceName, Env: "AGNES_INSTANCE_NAME", Default: "Agnes", Stored: true, Help: "Name shown to people."},
		{Key: AllowedDomain, Env: "AGNES_ALLOWED_DOMAIN", Stored: true, Help: "E-mail domain that new users must have."},
		{Key: LogLevel, Env: "AGNES_LOG_LEVEL", Flag: "log-level", Default: "info", OneOf: []string{"debug", "info", "warn", "error"}, Help: "Least severity that is logged."},
		{Key: LogFormat, Env: "AGNES_LOG_FORMAT", Flag: "log-format", Default: "text", OneOf: []string{"text", "json"}, Help: "Form of the log on standard error."},
		{Key: Image, Env: "AGNES_IMAGE", Default: "ghcr.io/keboola/agnes-the-ai-analyst", Help: "Image repository that this instance is deployed from; it is asked whether the running version is deprecated."},
		{Key: ImageDigest, Env: "AGNES_IMAGE_DIGEST", Recorded: true, Help: "Digest of the running image, recorded by the deploy."},
		{Key: BundleVersion, Env: "AGNES_BUNDLE_VERSION", Recorded: true, Help: "Version of the compose files and scripts on the host, recorded by the deploy."},
		{Key: UpdateFailed, Env: "AGNES_UPDATE_FAILED", Recorded: true, Help: "Digest of an image that failed here and was taken back, recorded by the deploy."},
		{Key: UpdateCheck, Env: "AGNES_UPDATE_CHECK", Default: "on", OneOf: []string{"on", "off"}, Help: "off never asks the registry whether the running version is deprecated."},
		{Key: BackupSchedule, Env: "AGNES_BACKUP_SCHEDULE", Default: "daily 03:00", Help: "When backups are made by themselves: daily HH:MM (UTC, some minutes later on each instance), hourly or off."},
		{Key: BackupKeep, Env: "AGNES_BACKUP_KEEP", Default: "7", Help: "How many days of scheduled backups are kept, the newest of each day; as many of those that were asked for are kept apart."},
		{Key: BackupExtracts, Env: "AGNES_BACKUP_EXTRACTS", Default: "false", OneOf: []string{"true", "false"}, Help: "Whether scheduled backups hold the tables' data too."},
		{Key: BackupTarget, Env: "AGNES_BACKUP_TARGET", Help: "Where encrypted copies of backups are kept off this host: s3://BUCKET/PREFIX?endpoint=…&region=…, gs://BUCKET/PREFIX, sftp://USER@HOST:PORT/PATH or file:///PATH of another disk; empty keeps none."},
		{Key: BackupRecipients, Env: "AGNES_BACKUP_RECIPIENTS", Help: "Public keys that copies of backups are encrypted to, separated by commas, or the path of a file with them: age1… or ssh-ed25519 …; agnes backup keygen makes one."},
		{Key: BackupOffsiteKeep, Env: "AGNES_BACKUP_OFFSITE_KEEP", Default: "30", Help: "What stays at the target: a number of newest backups, or of days with a d behind it, counted from the newest."},
		{Key: BackupS3AccessKeyID, Env: "AGNES_BACKUP_S3_ACCESS_KEY_ID", Help: "Access key of an s3:// target; empty is what AWS's tools would use: AWS_* variables, ~/.aws, the machine's role."},
		{Key: BackupS3SecretKey, Env: "AGNES_BACKUP_S3_SECRET_ACCESS_KEY", Secret: true, Help: "Secret key of an s3:// target."},
		{Key: BackupSFTPKey, Env: "AGNES_BACKUP_SFTP_KEY", Secret: true, Help: "Path of the private key, without a passphrase, for an sftp:// target; or the key itself."},
		{Key: BackupSFTPHostKey, Env: "AGNES_BACKUP_SFTP_HOST_KEY", Help: "Host key of an sftp:// target (ssh-ed25519 AAAA…, or a line of known_hosts); an unknown server is never trusted."},
		{Key: ExtensionDir, Env: "AGNES_EXTENSION_DIR", Help: "Directory with DuckDB extensions (*.duckdb_extension) for remote tables; empty is where DuckDB itself installs them, ~/.duckdb/extensions. Nothing is downloaded."},
		{Key: RemoteExtensions, Env: "AGNES_REMOTE_ATTACH_EXTENSIONS", Default: strings.Join(connectors.DefaultPolicy().Extensions, ","), Help: "DuckDB extensions that _remote_attach may name, separated by commas."},
		{Key: RemoteTokenEnvs, Env: "AGNES_REMOTE_ATTACH_TOKEN_ENVS", Default: strings.Join(connectors.DefaultPolicy().TokenEnvs, ","), Help: "Environment variables that _remote_attach may name in token_env, separated by commas."},
	}
}

// Value is a resolved setting and where it came from.
type Value struct {
	Setting
	Text   string
	Source string // "flag --addr", "environment AGNES_ADDR", "file /run/secrets/x (AGNES_ADDR_FILE)", "instance.yaml", "default", "derived …"
}

// Shown returns the value as people may see it.
func (v Value) Shown() string {
	if v.Secret && v.Text != "" {
		return "[redacted]"
	}
	return v.Text
}

// Fixed reports whether the value cannot be changed by storing another, and the
// name of what fixes it.
func (v Value) Fixed() (by string, fixed bool) {
	if v.Source == sourceStored || v.Source == sourceDefault {
		return "", false
	}
	return v.Source, true
}

const (
	sourceStored  = "instance.yaml"
	sourceDefault = "default"
)

// Inputs are the places that values come from.
type Inputs struct {
	Flags  map[string]string   // by key; only the flags that were given
	Getenv func(string) string // os.Getenv
	Stored map[string]string   // content of instance.yaml
}

// Resolved is a complete configuration. It is a value: a change makes a new one.
type Resolved struct {
	values map[string]Value
}

// Resolve finds every setting's value. A value that is not allowed, a file that
// cannot be read, or a variable given both ways is a problem.Usage that names
// the place.
func Resolve(in Inputs) (*Resolved, error) {
	r := &Resolved{values: make(map[string]Value)}
	for _, s := range All() {
		v, err := resolve(s, in)
		if err != nil {
			return nil, err
		}
		if len(s.OneOf) > 0 && v.Text != "" && !slices.Contains(s.OneOf, v.Text) {
			return nil, problem.New(problem.Usage,
				fmt.Sprintf("%s from %s is %q; expected one of %s.", s.Key, v.Source, v.Shown(), strings.Join(s.OneOf, ", ")),
				fmt.Sprintf("Set %s to one of these, or leave it out.", s.Env))
		}
		r.values[s.Key] = v
	}
	r.deriveSource()
	return r, nil
}

// deriveSource makes a source whose place the environment gives the data
// source, so that an instance can be started over a folder in one command.
func (r *Resolved) deriveSource() {
	source, dir := r.values[DataSource], r.values[CSVDir]
	if by, fixed := dir.Fixed(); fixed && source.Source == sourceDefault {
		source.Text, source.Source = "csv", "derived from "+by
		r.values[DataSource] = source
	}
}

func resolve(s Setting, in Inputs) (Value, error) {
	if text, ok := in.Flags[s.Key]; ok {
		return Value{Setting: s, Text: text, Source: "flag --" + s.Flag}, nil
	}
	text, file := in.Getenv(s.Env), in.Getenv(s.Env+"_FILE")
	switch {
	case text != "" && file != "":
		return Value{}, problem.New(problem.Usage,
			fmt.Sprintf("Both %s and %s_FILE are set; expected one of them.", s.Env, s.Env),
			fmt.Sprintf("Unset %s or %s_FILE.", s.Env, s.Env))
	case text != "":
		return Value{Setting: s, Text: text, Source: "environment " + s.Env}, nil
	case file != "":
		data, err := os.ReadFile(file)
		if err != nil {
			return Value{}, problem.Wrap(err, problem.Usage,
				fmt.Sprintf("%s_FILE names %s, which cannot be read", s.Env, file),
				fmt.Sprintf("Make the file readable, or unset %s_FILE.", s.Env))
		}
		return Value{
			Setting: s,
			Text:    strings.TrimRight(string(data), "\r\n"),
			Source:  fmt.Sprintf("file %s (%s_FILE)", file, s.Env),
		}, nil
	}
	if text, ok := in.Stored[s.Key]; ok && s.Stored {
		return Value{Setting: s, Text: text, Source: sourceStored}, nil
	}
	return Value{Setting: s, Text: s.Default, Source: sourceDefault}, nil
}

// Get returns the text of a setting.
func (r *Resolved) Get(key string) string { return r.Value(key).Text }

// Value returns a setting with its source. An unknown key is a mistake in the
// program.
func (r *Resolved) Value(key string) Value {
	v, ok := r.values[key]
	if !ok {
		panic("settings: unknown key " + key)
	}
	return v
}

// Values returns every setting in the order of All.
func (r *Resolved) Values() []Value {
	var vs []Value
	for _, s := range All() {
		vs = append(vs, r.values[s.Key])
	}
	return vs
}

// Hash identifies the configuration without its secrets, for drift detection. It
// is the same after a restart, and after a deploy that changes no setting.
func (r *Resolved) Hash() string {
	h := sha256.New()
	for _, v := range r.Values() {
		if !v.Secret && !v.Recorded {
			fmt.Fprintf(h, "%s=%q\n", v.Key, v.Text)
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// RemotePolicy returns what remote attachments may use.
func (r *Resolved) RemotePolicy() connectors.Policy {
	list := func(key string) []string {
		return strings.FieldsFunc(r.Get(key), func(c rune) bool { return c == ',' || c == ' ' })
	}
	return connectors.Policy{Extensions: list(RemoteExtensions), TokenEnvs: list(RemoteTokenEnvs)}
}

// EnvName returns the environment variable of a key, for hints.
func EnvName(key string) string {
	for _, s := range All() {
		if s.Key == key {
			return cmp.Or(s.Env, key)
		}
	}
	return key
}
