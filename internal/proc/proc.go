// Package proc names a process so that another one can tell whether it still
// lives. A lease that bears such a name is free as soon as its holder has died
// on the same machine; of processes elsewhere nothing is known, and their leases
// end by themselves.
package proc

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Name returns an owner's words for people with this process behind them: boot,
// PID namespace, process id and its start within that boot.
func Name(owner string) string { return owner + " " + self() }

func self() string {
	pid := os.Getpid()
	return fmt.Sprintf("[%s %s %d %s]", boot(), namespace(), pid, startOf(pid))
}

// Owner returns the words for people of what Name returned.
func Owner(text string) string {
	if at := strings.LastIndex(text, " ["); at > 0 {
		return text[:at]
	}
	return text
}

// Ended reports whether what Name returned was a process of this very machine that is no
// more. Of any other owner it knows nothing.
func Ended(text string) bool {
	at := strings.LastIndex(text, " [")
	if at < 0 {
		return false
	}
	parts := strings.Fields(strings.TrimSuffix(text[at+2:], "]"))
	if len(parts) != 4 || parts[0] == "-" || parts[0] != boot() || parts[1] == "-" || parts[1] != namespace() {
		return false
	}
	pid, err := strconv.Atoi(parts[2])
	return err == nil && startOf(pid) != parts[3]
}

// namespace tells processes of two containers apart, whose ids mean nothing to
// each other.
func namespace() string {
	ns, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return "-"
	}
	return strings.Trim(ns, "pid:[]")
}

func boot() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "-"
	}
	return strings.TrimSpace(string(id))
}

// startOf returns field 22 of /proc/PID/stat (proc_pid_stat(5)), the start of a
// process; "-" where there is none. A zombie has ended.
func startOf(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "-"
	}
	text := string(stat)
	fields := strings.Fields(text[strings.LastIndex(text, ")")+1:])
	if len(fields) < 20 || fields[0] == "Z" {
		return "-"
	}
	return fields[19]
}
