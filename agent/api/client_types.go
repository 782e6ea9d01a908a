package api

// Config is GET /api/admin/config: what the instance runs with.
type Config struct {
	Settings []Setting `json:"settings"`
}

// Setting is one configured value. Keys are those of ConfigureRequest's JSON;
// a secret's value reads [redacted].
type Setting struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Source string `json:"source" doc:"Where the value comes from, such as an environment variable, the stored file or the default."`
}

// Value returns the value of a setting and whether it is there.
func (c Config) Value(key string) (string, bool) {
	for _, s := range c.Settings {
		if s.Key == key {
			return s.Value, true
		}
	}
	return "", false
}
