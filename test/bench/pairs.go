package main

import (
	"context"
	"fmt"
	"slices"
)

// metric is a figure of a sample. Less is better.
type metric struct {
	name, unit string
	of         func(sample) float64
	// difference compares by ours - theirs, not by ours / theirs.
	difference bool
	// goal is the largest ratio, or difference, to the rival goalFor, as in docs/benchmarks.md.
	goal    float64
	goalFor string
}

// spread is the distribution of some figures.
type spread struct{ median, q1, q3, least, most float64 }

// spreadOf sorts figures in place. There is at least one.
func spreadOf(figures []float64) spread {
	slices.Sort(figures)
	at := func(share float64) float64 {
		x := share * float64(len(figures)-1)
		i := int(x)
		if i+1 == len(figures) {
			return figures[i]
		}
		return figures[i] + (x-float64(i))*(figures[i+1]-figures[i])
	}
	return spread{median: at(0.5), q1: at(0.25), q3: at(0.75), least: at(0), most: at(1)}
}

// pair is a measurement of cachalot and one of a rival right after it or before it.
type pair struct{ ours, theirs sample }

// measurement makes one sample.
type measurement func(context.Context) (sample, error)

// measure measures n pairs, A B B A A B ..., so that a drift of the machine affects both sides.
func measure(ctx context.Context, n int, ours, theirs measurement) ([]pair, error) {
	pairs := make([]pair, n)
	for i := range pairs {
		steps := []struct {
			measurement
			to *sample
		}{{ours, &pairs[i].ours}, {theirs, &pairs[i].theirs}}
		if i%2 == 1 {
			slices.Reverse(steps)
		}
		for _, s := range steps {
			var err error
			if *s.to, err = s.measurement(ctx); err != nil {
				return nil, fmt.Errorf("pair %d: %w", i+1, err)
			}
		}
	}
	return pairs, nil
}

// repeat measures one server n times.
func repeat(ctx context.Context, n int, m measurement) ([]sample, error) {
	samples := make([]sample, n)
	for i := range samples {
		var err error
		if samples[i], err = m(ctx); err != nil {
			return nil, err
		}
	}
	return samples, nil
}

func split(pairs []pair) (ours, theirs []sample) {
	for _, p := range pairs {
		ours, theirs = append(ours, p.ours), append(theirs, p.theirs)
	}
	return ours, theirs
}

// row is a line of the table.
type row struct {
	work, measure string
	ours          string
	rival, theirs string
	ratio, spread string // of the pairs
	goal          string
	verdict       verdict
}

// verdict says whether a goal was reached.
type verdict int

const (
	noGoal verdict = iota
	reached
	missed
)

func judge(ok bool) verdict {
	if ok {
		return reached
	}
	return missed
}

// compare makes a row from pairs: both medians, and the median and quartiles of the pairs' ratios.
func compare(work string, m metric, rival string, pairs []pair) row {
	var ours, theirs, both []float64
	for _, p := range pairs {
		a, b := m.of(p.ours), m.of(p.theirs)
		ours, theirs = append(ours, a), append(theirs, b)
		if m.difference {
			both = append(both, a-b)
		} else {
			both = append(both, a/b)
		}
	}
	s := spreadOf(both)
	r := row{
		work: work, measure: m.name, rival: rival,
		ours: figure(spreadOf(ours).median, m.unit), theirs: figure(spreadOf(theirs).median, m.unit),
	}
	format := func(x float64) string { return fmt.Sprintf("%.3f", x) }
	unit := " x"
	if m.difference {
		format = func(x float64) string { return fmt.Sprintf("%+.2f", x) }
		unit = " " + m.unit
	}
	r.ratio = format(s.median) + unit
	r.spread = fmt.Sprintf("%s to %s (%s to %s)", format(s.q1), format(s.q3), format(s.least), format(s.most))
	if m.goalFor == rival {
		r.goal = fmt.Sprintf("<= %g%s", m.goal, unit)
		r.verdict = judge(s.median <= m.goal)
	}
	return r
}

// alone makes a row without a rival.
func alone(work string, m metric, samples []sample) row {
	var figures []float64
	for _, s := range samples {
		figures = append(figures, m.of(s))
	}
	return row{work: work, measure: m.name, ours: figure(spreadOf(figures).median, m.unit)}
}

// figure prints x with about three digits and its unit.
func figure(x float64, unit string) string {
	format := "%.0f"
	switch {
	case x < 1:
		format = "%.3f"
	case x < 10:
		format = "%.2f"
	case x < 100:
		format = "%.1f"
	}
	return fmt.Sprintf(format+" %s", x, unit)
}
