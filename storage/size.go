package storage

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
)

// Size is an amount of disk: bytes, or a share of the file system that holds
// the storage folder. The zero Size is "0".
type Size struct {
	Bytes   int64
	Percent float64 // 0 < Percent <= 100; Bytes is then 0
}

// ParseSize reads "50GiB", "500MB", "1024" or "5%".
func ParseSize(s string) (Size, error) {
	text := strings.TrimSpace(s)
	if p, ok := strings.CutSuffix(text, "%"); ok {
		v, err := strconv.ParseFloat(strings.TrimSpace(p), 64)
		if err != nil || math.IsNaN(v) || v < 0 || v > 100 {
			return Size{}, fmt.Errorf("%q is not a share of the disk; write 0%% to 100%%, such as 5%%", s)
		}
		return Size{Percent: v}, nil
	}
	v, err := humanize.ParseBytes(text)
	if err != nil || v > math.MaxInt64 || strings.HasPrefix(text, "-") {
		return Size{}, fmt.Errorf("%q is not a size; write a number with a unit such as 50GiB, or a share of the disk such as 5%%", s)
	}
	return Size{Bytes: int64(v)}, nil
}

// UnmarshalText reads what [ParseSize] reads.
func (s *Size) UnmarshalText(text []byte) error {
	v, err := ParseSize(string(text))
	if err != nil {
		return err
	}
	*s = v
	return nil
}

// MarshalText writes what [Size.String] writes.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String writes the size so that [ParseSize] reads the same one.
func (s Size) String() string {
	if s.Percent > 0 {
		return strconv.FormatFloat(s.Percent, 'g', -1, 64) + "%"
	}
	units := []string{"TiB", "GiB", "MiB", "KiB"}
	for i, unit := range units {
		if n := int64(1) << (10 * (len(units) - i)); s.Bytes >= n && s.Bytes%n == 0 {
			return strconv.FormatInt(s.Bytes/n, 10) + unit
		}
	}
	return strconv.FormatInt(s.Bytes, 10)
}

// of returns the size in bytes on a file system of total bytes.
func (s Size) of(total int64) int64 {
	if s.Percent > 0 {
		return int64(float64(total) * s.Percent / 100)
	}
	return s.Bytes
}
