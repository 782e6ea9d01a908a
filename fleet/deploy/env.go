package deploy

import (
	"bytes"
	"strings"
)

// The lines of .env that a deploy writes. All others are the customer's and
// stay byte for byte as they are.
const (
	envImage  = "AGNES_IMAGE"
	envTag    = "AGNES_TAG"
	envDigest = "AGNES_IMAGE_DIGEST"
	envBundle = "AGNES_BUNDLE_VERSION"
	envFailed = "AGNES_UPDATE_FAILED" // digest of an image that was taken back because it failed; the instance's health says it
)

// envOf returns the .env lines that make compose run an image.
func envOf(i Image) map[string]string {
	return map[string]string{envImage: i.Repository, envTag: i.Tag, envDigest: i.Digest, envBundle: i.Version, envFailed: ""}
}

// editEnv sets variables in the text of an .env file. A variable that stands
// there is changed in its place, a further line of the same name is dropped,
// and a new one is added at the end; an empty value takes the line away.
func editEnv(text []byte, set map[string]string) []byte {
	var out bytes.Buffer
	seen := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		name := lineName(line)
		value, ours := set[name]
		switch {
		case !ours:
			out.WriteString(line)
		case value != "" && !seen[name]:
			out.WriteString(name + "=" + value + "\n")
		}
		seen[name] = seen[name] || ours
	}
	if n := out.Len(); n > 0 && out.Bytes()[n-1] != '\n' {
		out.WriteByte('\n')
	}
	for _, name := range []string{envImage, envTag, envDigest, envBundle, envFailed} {
		if value := set[name]; value != "" && !seen[name] {
			out.WriteString(name + "=" + value + "\n")
		}
	}
	return out.Bytes()
}

// envValue returns the last value of a variable, without quotes, as compose
// reads it.
func envValue(text []byte, name string) string {
	value := ""
	for line := range strings.Lines(string(text)) {
		if lineName(line) != name {
			continue
		}
		_, v, _ := strings.Cut(line, "=")
		v = strings.TrimSpace(v)
		if at := closing(v); at > 0 {
			v = v[1:at]
		} else if at := strings.Index(v, " #"); at >= 0 {
			v = strings.TrimSpace(v[:at])
		}
		value = v
	}
	return value
}

// closing returns where the quote that a value begins with ends, or 0.
func closing(v string) int {
	if v == "" || v[0] != '"' && v[0] != '\'' {
		return 0
	}
	return strings.IndexByte(v[1:], v[0]) + 1
}

func lineName(line string) string {
	name, _, found := strings.Cut(line, "=")
	if !found {
		return ""
	}
	return strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(name), "export "))
}
