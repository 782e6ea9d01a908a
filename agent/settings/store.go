package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/goccy/go-yaml"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// FileName is the name of the stored configuration in DATA_DIR/state.
const FileName = "instance.yaml"

const header = "# Written by Agnes. Change it with POST /api/admin/configure or `agnesctl instance configure`.\n"

// Load reads a stored configuration; a missing file is an empty one. An unknown
// key is refused with its line, so that a slip never passes silently.
func Load(path string) (map[string]string, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]string{}, nil
	}
	if err != nil {
		return nil, problem.Wrap(err, problem.Internal, fmt.Sprintf("The stored configuration %s cannot be read", path),
			"Make it readable for the user that runs agnes: chmod 0600 "+path)
	}
	return Decode(path, data)
}

// Decode reads a stored configuration; name is the file's, for messages.
func Decode(name string, data []byte) (map[string]string, error) {
	stored := make(map[string]string)
	var raw yaml.MapSlice
	if err := yaml.Unmarshal(data, &raw); err != nil {
		return nil, problem.Wrap(err, problem.Usage, fmt.Sprintf("The stored configuration %s is not valid YAML", name),
			"Repair the line named above, or move the file away and configure again: mv "+name+" "+name+".broken")
	}
	known := make(map[string]bool)
	for _, s := range All() {
		known[s.Key] = s.Stored
	}
	for _, item := range raw {
		key := fmt.Sprint(item.Key)
		if !known[key] {
			return nil, problem.New(problem.Usage,
				fmt.Sprintf("The stored configuration %s has the key %q in line %d; expected one of %v.", name, key, lineOf(data, key), storedKeys()),
				"Remove that line.")
		}
		switch item.Value.(type) {
		case map[string]any, []any, yaml.MapSlice:
			return nil, problem.New(problem.Usage,
				fmt.Sprintf("The stored configuration %s has a list or map under %q in line %d; expected text.", name, key, lineOf(data, key)),
				"Replace it by a single value.")
		case nil:
			stored[key] = ""
		default:
			stored[key] = fmt.Sprint(item.Value)
		}
	}
	return stored, nil
}

// Encode writes a stored configuration, keys sorted.
func Encode(stored map[string]string) ([]byte, error) {
	var items yaml.MapSlice
	for _, k := range slices.Sorted(maps.Keys(stored)) {
		items = append(items, yaml.MapItem{Key: k, Value: stored[k]})
	}
	body, err := yaml.Marshal(items)
	return append([]byte(header), body...), err
}

func storedKeys() []string {
	var keys []string
	for _, s := range All() {
		if s.Stored {
			keys = append(keys, s.Key)
		}
	}
	return keys
}

func lineOf(data []byte, key string) int {
	for i, line := range bytes.Split(data, []byte("\n")) {
		if bytes.HasPrefix(bytes.TrimLeft(line, ` "'`), []byte(key)) {
			return i + 1
		}
	}
	return 0
}
