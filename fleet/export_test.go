package fleet

// EnvToken is a token that an inventory names as ${env:NAME}.
func EnvToken(name, value string) Token {
	return Token{text: "${env:" + name + "}", env: name, getenv: func(string) string { return value }}
}
