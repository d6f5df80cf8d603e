package process

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSendfile counts the system calls for the body of a warm 64 MiB blob: sendfile sends
// it, and the process copies nothing.
func TestSendfile(t *testing.T) {
	t.Parallel()
	strace := straceOrSkip(t)
	up, blob, folder := keptBlob(t, 64<<20)

	trace := filepath.Join(t.TempDir(), "trace")
	s := start(t, folder, up.URL, strace, "-f", "-qq", "-e", "trace=sendfile,splice,write,writev,sendto,sendmsg,read,pread64", "-o", trace)
	if n := drain(t, s.URL, "/v2/library/app/blobs/"+blob.Digest.String()); n < blob.Size {
		t.Fatalf("the client got %d bytes", n)
	}
	s.Kill()
	b, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	var sent, other []string
	big := regexp.MustCompile(`\b(write|writev|sendto|sendmsg|read|pread64|splice)\(.* = (\d{4,})$`)
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.Contains(line, "sendfile") && !strings.Contains(line, "EAGAIN") && !strings.Contains(line, "unfinished"):
			sent = append(sent, line)
		case big.MatchString(line):
			other = append(other, line)
		}
	}
	// The number depends on the client's speed; copies would be 4,100.
	if len(sent) == 0 || len(sent) > 1000 {
		t.Errorf("%d sendfile calls for 64 MiB, want 1 to 1000", len(sent))
	}
	if len(other) > 40 {
		t.Errorf("%d reads and writes of more than 1000 bytes: the body does not go by sendfile\n%s", len(other), strings.Join(other[:10], "\n"))
	}
	t.Logf("%d sendfile calls, %d other large ones", len(sent), len(other))
}

// drain reads a response as fast as the kernel can: it discards the bytes in the socket
// (recv(2), MSG_TRUNC). The number of pieces of a file depends on the receiver's speed.
func drain(t *testing.T, url, path string) (n int64) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://")) //nolint:noctx // loopback
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte("GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16<<20)
	for {
		var got int
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			got, _, rerr = unix.Recvfrom(int(fd), buf, unix.MSG_TRUNC)
			return rerr != unix.EAGAIN
		})
		if err != nil || rerr != nil {
			t.Fatal(err, rerr)
		}
		if got == 0 {
			return n
		}
		n += int64(got)
	}
}
