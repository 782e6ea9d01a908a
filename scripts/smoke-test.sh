#!/bin/sh
# Asks a running instance seven questions: does a release work? It is the smoke
# test of `agnesctl smoke`, for those who want to read it: the same steps, the same
# verdicts, nothing but a POSIX shell, curl, sed and grep. agnesctl looks closer
# (it parses the JSON, also sees data that went back in time, and writes reports)
# and can do without an account of its own.
#
#   SMOKE_EMAIL=admin@company.com SMOKE_PASSWORD_FILE=password scripts/smoke-test.sh HOST:PORT
#
#   SMOKE_EMAIL          an admin of the instance
#   SMOKE_PASSWORD       its password, or
#   SMOKE_PASSWORD_FILE  a file with it on the first line
#   SMOKE_WAIT           longest time to follow the sync, in seconds; 30
#   CURL_CA_BUNDLE       certificates to trust, as curl knows it
#
# Exit codes: 0 pass, 1 fail, 2 the command line is wrong, 5 inconclusive (the way
# to the instance or the credentials are at fault; says nothing about the release).
set -eu
umask 077
export LC_ALL=C
# No proxy leads to this machine: curl would ask one even for that, agnesctl does not.
export no_proxy="localhost,127.0.0.1,::1,${no_proxy:-${NO_PROXY:-}}"

usage() {
	printf 'smoke-test.sh: %s\n' "$1" >&2
	echo "Usage: SMOKE_EMAIL=… SMOKE_PASSWORD_FILE=… $0 HOST:PORT" >&2
	exit 2
}
[ $# -eq 1 ] || usage "expected one address"
case $1 in
http://* | https://*) url=${1%/} ;;
*) url=http://${1%/} ;;
esac
email=${SMOKE_EMAIL:-} password=${SMOKE_PASSWORD:-} wait=${SMOKE_WAIT:-30}
if [ -z "$password" ] && [ -n "${SMOKE_PASSWORD_FILE:-}" ]; then
	IFS= read -r password <"$SMOKE_PASSWORD_FILE" || [ -n "$password" ] || usage "no password in $SMOKE_PASSWORD_FILE"
fi
unset SMOKE_PASSWORD
if [ -z "$email" ] || [ -z "$password" ]; then usage "expected SMOKE_EMAIL and SMOKE_PASSWORD or SMOKE_PASSWORD_FILE"; fi
command -v curl >/dev/null || usage "curl is not installed"

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'echo "Verdict: inconclusive (interrupted)"; exit 5' HUP INT TERM
: >"$dir/auth"
step=

ok() { printf '%-13s pass          %s\n' "$step" "$1"; }
fail() { verdict fail 1 "$1"; }
inconclusive() { verdict inconclusive 5 "$1"; }
verdict() {
	printf '%-13s %-13s %s\n' "$step" "$1" "$3"
	if [ -s "$dir/answer" ]; then
		# Tokens are the one secret that an instance sends.
		sed 's/\("[a-z_]*token":"\)[^"]*/\1[redacted]/g' "$dir/answer" | tr -d '\000-\010\013-\037\177' | cut -c 1-2048
	fi
	echo "Verdict: $1"
	exit "$2"
}

# ask METHOD PATH SECONDS [BODY-FILE] leaves the status in $status and the answer,
# without needless spaces, in the file answer. Token and password are in files
# that curl reads, for everyone on the machine can see its arguments.
ask() {
	: >"$dir/answer"
	curl_code=0 status=
	if [ $# -eq 4 ]; then
		set -- "$1" "$2" "$3" --header "Content-Type: application/json" --data-binary "@$4"
	fi
	method=$1 path=$2 seconds=$3
	shift 3
	curl -q --silent --config "$dir/auth" --request "$method" --max-time "$seconds" --connect-timeout 5 --max-filesize 16777216 \
		--header "Accept: application/json" "$@" --output "$dir/raw" \
		--write-out '%{http_code} %{time_connect} %{time_appconnect} %{redirect_url}' "$url$path" >"$dir/meta" || curl_code=$?
	read -r status connected secured redirect <"$dir/meta" || [ -n "$status" ]
	if [ -f "$dir/raw" ]; then
		tr '\r\n\t' '   ' <"$dir/raw" | sed 's/\([]{}:,[]\) */\1/g; s/ *\([]}]\)/\1/g; s/^ *//; s/ *$//' >"$dir/answer"
		rm -f "$dir/raw"
	fi
	[ "$curl_code" -eq 0 ] || unanswered "$method $path"
	case $status in
	429) inconclusive "$method $path answered 429: too many calls before these" ;;
	3??) case $redirect in
		"$url"/*) ;;
		?*) inconclusive "$url points to another address: $redirect" ;;
		esac ;;
	409) ! grep -q '"code":"draining"' "$dir/answer" || inconclusive "the instance is draining" ;;
	esac
}

# unanswered tells an instance that is silent from a way that is closed.
unanswered() {
	case $curl_code in
	7) # refused, or no way there: only the long form says which
		if curl -q --verbose --connect-timeout 5 --max-time 5 --output /dev/null "$url/api/health" 2>&1 | grep -qi 'connection refused'; then
			fail "nothing listens at $url: connection refused"
		fi ;;
	28) # no time left: was it connected by then?
		case $url in https://*) connected=$secured ;; esac
		case $connected in
		*[1-9]*) fail "no answer to $1 in time" ;;
		esac ;;
	1 | 8 | 16 | 18 | 52 | 56 | 61 | 63 | 92) fail "the connection broke before $1 was answered (curl $curl_code)" ;;
	esac
	inconclusive "no connection to $url (curl $curl_code)"
}

# expect STATUS WHAT fails on another status and on what is no JSON object.
expect() {
	[ "$status" = "$1" ] || fail "expected $1 from $2, found $status"
	grep -q '^{.*}$' "$dir/answer" || fail "expected JSON from $2, found something else"
}

# text NAME and value NAME print a field's first text or number.
text() { grep -o "\"$1\":\"[^\"]*\"" "$dir/answer" | head -n 1 | sed 's/^"[^"]*":"//; s/"$//'; }
value() { grep -o "\"$1\":[^],}]*" "$dir/answer" | head -n 1 | sed 's/^"[^"]*"://'; }

health() {
	ask GET /api/health 10
	expect 200 "GET /api/health"
	case $(text status) in
	healthy | degraded) ;;
	unhealthy) fail "the instance is unhealthy" ;;
	*) fail "expected the status healthy or degraded, found '$(text status)'" ;;
	esac
}
# services and warnings list what may get worse, one a line, without numbers.
services() { grep -o '"[A-Za-z0-9_-]*":{"status":"[a-z]*"' "$dir/answer" | grep -v '"healthy"$' | sort || true; }
warnings() {
	sed -n 's/.*"warnings":\[\([^]]*\)\].*/\1/p' "$dir/answer" | sed 's/","/"@"/g' | tr '@' '\n' |
		grep '^"..*"$' | grep -v '^"Running deprecated version' | while IFS= read -r w; do
		grep -qF "\"detail\":$w" "$dir/answer" || printf '%s\n' "$w" | sed 's/[0-9][0-9]*/0/g'
	done | sort
}

catalog() {
	ask GET /api/catalog/tables 30
	expect 200 "GET /api/catalog/tables"
	count=$(value count)
	case $count in
	'' | *[!0-9]*) fail "expected a count in the catalog" ;;
	0) fail "expected at least one table in the catalog, found none" ;;
	esac
	# One line a table: an entry holds no object of its own.
	tr '}' '\n' <"$dir/answer" | grep '"id":"' >"$dir/tables" || true
	[ "$(grep -c . "$dir/tables")" -eq "$count" ] || fail "the catalog counts $count tables and lists others"
}
last_sync() { grep -F "\"id\":\"$2\"" "$1" | sed -n 's/.*"last_sync":"\([^"]*\)".*/\1/p'; }

step=health
health
services >"$dir/services"
warnings >"$dir/warnings"
ok "the instance is $(text status), version $(text version)"

step=token
case $(value setup_required) in
true) fail "the instance waits for its first admin; set it up: agnesctl instance setup --url $url" ;;
esac
quoted() { printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g'; } # printf is the shell's own: no arguments to see
printf '{"email":"%s","password":"%s"}' "$(quoted "$email")" "$(quoted "$password")" >"$dir/login"
unset password
ask POST /auth/token 10 "$dir/login"
rm -f "$dir/login"
case $status in
401 | 403) inconclusive "the instance does not take these credentials: $status" ;;
esac
expect 200 "POST /auth/token"
token=$(text access_token)
[ -n "$token" ] || fail "expected a token, found none"
printf 'header = "Authorization: Bearer %s"\n' "$token" >"$dir/auth"
ok "signed in as $email ($(text role))"

step=catalog
catalog
cp "$dir/tables" "$dir/before"
ok "$count in the catalog"

step=query
printf '{"sql":"SELECT 1"}' >"$dir/query"
ask POST /api/query 30 "$dir/query"
expect 200 "POST /api/query"
if ! grep -q '"rows":\[\[1\]\]' "$dir/answer" || [ "$(value row_count)" != 1 ]; then fail "expected one row with the number 1 from SELECT 1"; fi
ok "SELECT 1 gave one row, 1"

step=sync
printf '{}' >"$dir/sync"
ask POST /api/sync/trigger 10 "$dir/sync"
foreign=
case $status in
401 | 403) inconclusive "$email may not start a sync: $status" ;;
409)
	[ "$(text code)" = sync_already_in_progress ] || fail "expected 200 from POST /api/sync/trigger, found 409"
	foreign=yes
	ask GET /api/sync/status 10
	expect 200 "GET /api/sync/status"
	job=$(text id) ;;
*)
	expect 200 "POST /api/sync/trigger"
	job=$(text job_id) ;;
esac
case $job in
'' | *[!A-Za-z0-9_-]*) fail "expected the id of a job, found '$job'" ;;
esac
ok "follows job $job${foreign:+, which ran already}"

step=wait
end=$(($(date +%s) + wait)) began=
while :; do
	ask GET "/api/sync/jobs/$job" 10
	expect 200 "GET /api/sync/jobs/$job"
	case $(text status) in
	succeeded | failed) break ;;
	queued | running) ;;
	*) fail "job $job has the unknown status '$(text status)'" ;;
	esac
	progress=$(value progress)
	began=${began:-$progress}
	[ "$(date +%s)" -lt "$end" ] || break
	sleep 1
done
case $(text status) in
failed) fail "job $job failed" ;;
succeeded)
	tr '}' '\n' <"$dir/answer" | sed -n 's/.*"id":"\([^"]*\)".*"status":"\([a-z]*\)".*/\2 \1/p' | grep -v " $job\$" >"$dir/synced" || true
	[ -s "$dir/synced" ] || fail "job $job succeeded without a table"
	catalog
	! grep -q '"stale":true' "$dir/tables" || fail "tables are stale after the sync"
	while read -r result id; do
		grep -qF "\"id\":\"$id\"" "$dir/tables" || fail "$id was synced, but is not in the catalog"
		! grep -F "\"id\":\"$id\"" "$dir/tables" | grep -q '"query_mode":"remote"' || continue
		now=$(last_sync "$dir/tables" "$id")
		was=$(last_sync "$dir/before" "$id")
		[ -n "$now" ] || fail "$id was synced, but has no last_sync"
		if [ "$result" = succeeded ] && [ -z "$foreign" ] && [ "$now" = "$was" ]; then
			fail "$id was synced, says the job, but still has the data of $was"
		fi
	done <"$dir/synced"
	ok "job $job succeeded; its tables are fresh" ;;
*)
	if [ "$progress" = "$began" ]; then
		health
		[ "$(text phase)" = syncing ] || fail "job $job was not done after $wait s, and does not get on"
	fi
	ok "job $job still runs after $wait s; whether its data are fresh was not seen" ;;
esac

step=health-after
health
services >"$dir/services.now"
warnings >"$dir/warnings.now"
for what in services warnings; do
	new=$(comm -13 "$dir/$what" "$dir/$what.now")
	[ -z "$new" ] || fail "worse than at the first step: $new"
done
ok "the instance is $(text status); nothing is worse than at the first step"
echo "Verdict: pass"
