package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// checkSize is how much a check reads at a time.
const checkSize = 1 << 20

// damage is a file whose content does not match its name.
type damage struct {
	file fs.FileInfo
	why  error
}

// still returns why, if the name still belongs to the file that was read; else nil.
func (d *damage) still(name string) error {
	if info, err := os.Lstat(name); err != nil || !os.SameFile(info, d.file) {
		return nil //nolint:nilerr // it is gone, or another one
	}
	return d.why
}

// check reads a blob's file and compares its digest. It calls before with the number of
// bytes that it is about to read. A file that cannot be read is damaged too. An error means
// that the blob was not checked: it is gone, may not be opened, or before failed.
//
// It reads from the disk, past the page cache: it pushes nothing out of the cache, and a
// good page in the cache does not hide damage on the disk.
func (k disk) check(ctx context.Context, d digest.Digest, before func(context.Context, int) error) (read int64, bad *damage, err error) {
	f, direct, err := openDirect(k.blob(d))
	if err != nil {
		return 0, nil, fmt.Errorf("open blob: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	if err != nil {
		return 0, nil, fmt.Errorf("stat blob: %w", err)
	}
	defer lastInLine()()
	hash := d.Algorithm().Hash()
	// O_DIRECT needs an aligned buffer; a slice of whole pages is aligned to a page. If the
	// file system needs more it returns EINVAL, and the file is read through the cache.
	buf := make([]byte, min(checkSize, blocks(info.Size())))
	for read < info.Size() {
		if err := before(ctx, int(min(checkSize, info.Size()-read))); err != nil {
			return read, nil, err
		}
		n, err := f.Read(buf)
		if direct && errors.Is(err, unix.EINVAL) {
			direct = false
			if cerr := control(f, throughCache); cerr == nil {
				continue
			}
		}
		_, _ = hash.Write(buf[:n]) // a hash never fails
		if !direct && n > 0 {
			_ = control(f, func(fd int) error { return unix.Fadvise(fd, read, int64(n), unix.FADV_DONTNEED) })
		}
		read += int64(n)
		switch {
		case errors.Is(err, io.EOF):
			return read, &damage{info, fmt.Errorf("%w: file ends at byte %d of %d", ErrDigest, read, info.Size())}, nil
		case err != nil:
			return read, &damage{info, fmt.Errorf("read at %d: %w", read, pathless(err))}, nil
		}
	}
	if sum := digest.NewDigest(d.Algorithm(), hash); sum != d {
		return read, &damage{info, fmt.Errorf("%w: %d bytes with digest %s", ErrDigest, read, sum)}, nil
	}
	return read, nil, nil
}

// openDirect opens a file with O_DIRECT, if the file system supports that.
func openDirect(name string) (f *os.File, direct bool, err error) {
	f, err = os.OpenFile(name, os.O_RDONLY|unix.O_DIRECT|unix.O_NOFOLLOW, 0)
	if !errors.Is(err, unix.EINVAL) {
		return f, true, err
	}
	f, err = os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	return f, false, err
}

// throughCache removes O_DIRECT from an open file.
func throughCache(fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&^unix.O_DIRECT)
	}
	return err
}

func control(f *os.File, do func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var derr error
	if err := conn.Control(func(fd uintptr) { derr = do(int(fd)) }); err != nil {
		return err
	}
	return derr
}

// pathless returns the error of a system call without the name of its file.
func pathless(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}

// lastInLine gives this goroutine the idle I/O priority (ioprio_set(2)) until leave is
// called: the disk serves all others first, if its scheduler supports that.
func lastInLine() (leave func()) {
	const process, idle = 1, 3 << 13
	runtime.LockOSThread()
	before, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, process, 0, 0)
	if errno != 0 {
		return runtime.UnlockOSThread // it continues with its usual priority
	}
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, process, 0, idle)
	return func() {
		_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, process, 0, before)
		runtime.UnlockOSThread()
	}
}
