package fleet

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// faultsShown bounds how many faults an error lists.
const faultsShown = 50

// fault is one thing that is wrong with an inventory.
type fault struct {
	at    Position
	order int // of its file
	err   *problem.Error
}

// faults collects all of them: who mends a file wants to hear everything at once.
type faults struct {
	list  []fault
	files map[string]int // in the order in which they were read
}

// add notes a fault. message begins with "expected", or says what is wrong.
func (f *faults) add(at Position, message, hint string) {
	f.wrap(at, message, hint, nil)
}

func (f *faults) wrap(at Position, message, hint string, cause error) {
	if f.files == nil {
		f.files = map[string]int{}
	}
	if _, known := f.files[at.File]; !known {
		f.files[at.File] = len(f.files)
	}
	f.list = append(f.list, fault{at: at, order: f.files[at.File], err: problem.Wrap(cause, problem.Usage, at.String()+": "+message, hint)})
}

// err returns nothing, the only fault, or all of them as one error.
func (f *faults) err() error {
	if len(f.list) == 0 {
		return nil
	}
	slices.SortStableFunc(f.list, func(a, b fault) int {
		return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.at.Line, b.at.Line), cmp.Compare(a.at.Column, b.at.Column))
	})
	if len(f.list) == 1 {
		return f.list[0].err
	}
	var all faultErrors
	for _, one := range f.list {
		all = append(all, one.err)
	}
	return problem.Wrap(all, problem.Usage, fmt.Sprintf("The fleet's inventory has %d faults", len(all)), "Mend them, then: agnesctl fleet list -f FILE")
}

// faultErrors is several problems, each with its hint.
type faultErrors []*problem.Error

// Error lists them, a line each.
func (l faultErrors) Error() string {
	var b strings.Builder
	for n, e := range l {
		if n == faultsShown {
			fmt.Fprintf(&b, "\nand %d more", len(l)-n)
			break
		}
		if n > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(e.Error())
		if e.Hint != "" {
			b.WriteString(" -> " + e.Hint)
		}
	}
	return b.String()
}

// Unwrap returns each.
func (l faultErrors) Unwrap() []error {
	all := make([]error, len(l))
	for n, e := range l {
		all[n] = e
	}
	return all
}

// explained takes the words of another package's error over.
func (f *faults) explained(at Position, key string, err error) {
	if e, ok := errors.AsType[*problem.Error](err); ok {
		f.add(at, key+e.Message, e.Hint)
		return
	}
	f.add(at, key+err.Error(), "")
}
