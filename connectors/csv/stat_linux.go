package csv

import (
	"io/fs"
	"syscall"
)

// identify includes the change time, which no program can set back: a file
// that was rewritten in place and given its old time again is seen.
func identify(info fs.FileInfo) fileID {
	id := fileID{Size: info.Size(), ModTime: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		id.ChangeTime = st.Ctim.Nano()
		id.Inode = st.Ino
	}
	return id
}
