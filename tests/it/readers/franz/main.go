// franz-go as a reader: go run . BROKERS TOPIC COUNT. Prints a record's value a line, from the beginning, what is committed.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func main() {
	count, err := strconv.Atoi(os.Args[3])
	check(err)
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(os.Args[1], ",")...),
		kgo.ConsumeTopics(os.Args[2]),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	)
	check(err)
	defer client.Close()
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	// What is too much comes within two seconds after the last one.
	patience, last := 60*time.Second, 2*time.Second
	for seen := 0; ; {
		if seen >= count {
			patience = last
		}
		wait, cancel := context.WithTimeout(context.Background(), patience)
		fetches := client.PollFetches(wait)
		cancel()
		if wait.Err() != nil && fetches.NumRecords() == 0 {
			return
		}
		for _, failed := range fetches.Errors() {
			check(failed.Err)
		}
		fetches.EachRecord(func(record *kgo.Record) {
			fmt.Fprintln(out, string(record.Value))
			seen++
		})
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
