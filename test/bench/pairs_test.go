package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestSpread(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		figures []float64
		want    spread
	}{
		{[]float64{3}, spread{3, 3, 3, 3, 3}},
		{[]float64{4, 2}, spread{3, 2.5, 3.5, 2, 4}},
		{[]float64{9, 1, 5, 3, 7}, spread{5, 3, 7, 1, 9}},
		{[]float64{7, 1, 100, 3, 4, 2, 6, 5}, spread{4.5, 2.75, 6.25, 1, 100}},
	} {
		if got := spreadOf(tt.figures); got != tt.want {
			t.Errorf("%v: got %+v, want %+v", tt.figures, got, tt.want)
		}
	}
}

func TestMeasureOrder(t *testing.T) {
	t.Parallel()
	var order strings.Builder
	n := 0
	one := func(name string) measurement {
		return func(context.Context) (sample, error) {
			order.WriteString(name)
			n++
			return sample{requests: int64(n)}, nil
		}
	}
	pairs, err := measure(t.Context(), 3, one("A"), one("B"))
	if err != nil || order.String() != "ABBAAB" {
		t.Fatalf("got %s, %v", order.String(), err)
	}
	for i, want := range [][2]int64{{1, 2}, {4, 3}, {5, 6}} {
		if got := [2]int64{pairs[i].ours.requests, pairs[i].theirs.requests}; got != want {
			t.Errorf("pair %d: measurements %v, want %v", i, got, want)
		}
	}
	broken := errors.New("broken")
	if _, err := measure(t.Context(), 1, one("A"), func(context.Context) (sample, error) { return sample{}, broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestCompare(t *testing.T) {
	t.Parallel()
	pairs := func(ms ...[2]int) []pair {
		var list []pair
		for _, p := range ms {
			at := func(ms int) sample { return sample{wall: time.Duration(ms) * time.Millisecond} }
			list = append(list, pair{at(p[0]), at(p[1])})
		}
		return list
	}
	// The medians' ratio is 200 / 100. The median of the pairs' ratios is 1.1.
	drift := pairs([2]int{110, 100}, [2]int{55, 50}, [2]int{220, 200}, [2]int{200, 400}, [2]int{600, 30})
	for _, tt := range []struct {
		metric  metric
		pairs   []pair
		want    row
		against string
	}{
		{
			seconds("wall", wallOf).withGoal(1.1, "nginx"), drift,
			row{measure: "wall", ours: "0.200 s", theirs: "0.100 s", ratio: "1.100 x", spread: "1.100 to 1.100 (0.500 to 20.000)", goal: "<= 1.1 x", verdict: reached},
			"nginx",
		},
		{
			seconds("wall", wallOf).withGoal(1.05, "nginx"), drift,
			row{measure: "wall", ours: "0.200 s", theirs: "0.100 s", ratio: "1.100 x", spread: "1.100 to 1.100 (0.500 to 20.000)", goal: "<= 1.05 x", verdict: missed},
			"nginx",
		},
		{
			seconds("wall", wallOf).withGoal(1.05, "nginx"), drift,
			row{measure: "wall", ours: "0.200 s", theirs: "0.100 s", ratio: "1.100 x", spread: "1.100 to 1.100 (0.500 to 20.000)"},
			"zot",
		},
		{
			milliseconds("first", wallOf).withGoal(5, direct), pairs([2]int{12, 8}, [2]int{8, 9}, [2]int{20, 13}),
			row{measure: "first", ours: "12.0 ms", theirs: "9.00 ms", ratio: "+4.00 ms", spread: "+1.50 to +5.50 (-1.00 to +7.00)", goal: "<= 5 ms", verdict: reached},
			direct,
		},
	} {
		tt.want.work, tt.want.rival = "work", tt.against
		if got := compare("work", tt.metric, tt.against, tt.pairs); got != tt.want {
			t.Errorf("got  %+v\nwant %+v", got, tt.want)
		}
	}
}
