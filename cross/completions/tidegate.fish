# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_tidegate_global_optspecs
    string join \n h/help V/version
end

function __fish_tidegate_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_tidegate_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_tidegate_using_subcommand
    set -l cmd (__fish_tidegate_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c tidegate -n "__fish_tidegate_needs_command" -s h -l help -d 'Print help'
complete -c tidegate -n "__fish_tidegate_needs_command" -s V -l version -d 'Print version'
complete -c tidegate -n "__fish_tidegate_needs_command" -f -a "run" -d 'Run the agent'
complete -c tidegate -n "__fish_tidegate_needs_command" -f -a "check" -d 'Check the configuration without a network: all errors at once; exit code 78 if it is wrong'
complete -c tidegate -n "__fish_tidegate_needs_command" -f -a "status" -d 'Show what the running agent holds, sends and waits for'
complete -c tidegate -n "__fish_tidegate_needs_command" -f -a "audit" -d 'Read the Kafka topics and check for each buffer that no reading is missing, repeated or out of order'
complete -c tidegate -n "__fish_tidegate_needs_command" -f -a "kafka-setup" -d 'Show what Kafka needs: the watermark topic, rights, cost; compare it with the cluster; create it with --apply'
complete -c tidegate -n "__fish_tidegate_needs_command" -f -a "demo" -d 'Show an outage on this machine, with simulated sensors and a simulated Kafka'
complete -c tidegate -n "__fish_tidegate_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c tidegate -n "__fish_tidegate_using_subcommand run" -l config -d 'Configuration file' -r -F
complete -c tidegate -n "__fish_tidegate_using_subcommand run" -s h -l help -d 'Print help'
complete -c tidegate -n "__fish_tidegate_using_subcommand check" -l config -d 'Configuration file' -r -F
complete -c tidegate -n "__fish_tidegate_using_subcommand check" -s h -l help -d 'Print help'
complete -c tidegate -n "__fish_tidegate_using_subcommand status" -l config -d 'Configuration file' -r -F
complete -c tidegate -n "__fish_tidegate_using_subcommand status" -l json -d 'Print JSON for machines'
complete -c tidegate -n "__fish_tidegate_using_subcommand status" -s h -l help -d 'Print help'
complete -c tidegate -n "__fish_tidegate_using_subcommand audit" -l config -d 'Configuration file: brokers, [kafka.options] and the topics of its routes' -r -F
complete -c tidegate -n "__fish_tidegate_using_subcommand audit" -l brokers -d 'Kafka brokers to ask, instead of those in the configuration' -r
complete -c tidegate -n "__fish_tidegate_using_subcommand audit" -l topic -d 'A topic to audit, instead of those of the routes; may be given more than once' -r
complete -c tidegate -n "__fish_tidegate_using_subcommand audit" -l topics -d 'Audit all topics whose whole name matches this' -r
complete -c tidegate -n "__fish_tidegate_using_subcommand audit" -l watermark-topic -d 'The watermark topic, to which the gateways write what they delivered [default: that of the configuration]' -r
complete -c tidegate -n "__fish_tidegate_using_subcommand audit" -l from -d 'Only records from this time on, by the records\' time: 2026-01-31T12:00:00Z, or 2h (for 2 hours ago)' -r
complete -c tidegate -n "__fish_tidegate_using_subcommand audit" -l to -d 'Only records before this time' -r
complete -c tidegate -n "__fish_tidegate_using_subcommand audit" -l buffer -d 'Only this buffer; may be given more than once' -r
complete -c tidegate -n "__fish_tidegate_using_subcommand audit" -l isolation -d 'Which records to read' -r -f -a "read-committed\t'What transactions have committed, as consumers should read'
read-uncommitted\t'Also what aborted or open transactions have written'"
complete -c tidegate -n "__fish_tidegate_using_subcommand audit" -l json -d 'Print JSON for machines: a line for each buffer, then the summary'
complete -c tidegate -n "__fish_tidegate_using_subcommand audit" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tidegate -n "__fish_tidegate_using_subcommand kafka-setup" -l config -d 'Configuration file' -r -F
complete -c tidegate -n "__fish_tidegate_using_subcommand kafka-setup" -l gateways -d 'The number of gateways that there will be' -r
complete -c tidegate -n "__fish_tidegate_using_subcommand kafka-setup" -l principal -d 'The Kafka principal of the gateways' -r
complete -c tidegate -n "__fish_tidegate_using_subcommand kafka-setup" -l watermark-topic -d 'The watermark topic, to which the gateways write what they delivered [default: that of the configuration]' -r
complete -c tidegate -n "__fish_tidegate_using_subcommand kafka-setup" -l apply -d 'Create the watermark topic, or correct its settings'
complete -c tidegate -n "__fish_tidegate_using_subcommand kafka-setup" -s h -l help -d 'Print help'
complete -c tidegate -n "__fish_tidegate_using_subcommand demo" -l seconds -d 'How long the demo takes, about' -r
complete -c tidegate -n "__fish_tidegate_using_subcommand demo" -l rate -d 'Readings a second, of all sensors together' -r
complete -c tidegate -n "__fish_tidegate_using_subcommand demo" -l sensors -d 'Number of simulated sensors' -r
complete -c tidegate -n "__fish_tidegate_using_subcommand demo" -l keep -d 'Keep the configuration, the buffer and the log, and print where they are'
complete -c tidegate -n "__fish_tidegate_using_subcommand demo" -s h -l help -d 'Print help'
complete -c tidegate -n "__fish_tidegate_using_subcommand help; and not __fish_seen_subcommand_from run check status audit kafka-setup demo help" -f -a "run" -d 'Run the agent'
complete -c tidegate -n "__fish_tidegate_using_subcommand help; and not __fish_seen_subcommand_from run check status audit kafka-setup demo help" -f -a "check" -d 'Check the configuration without a network: all errors at once; exit code 78 if it is wrong'
complete -c tidegate -n "__fish_tidegate_using_subcommand help; and not __fish_seen_subcommand_from run check status audit kafka-setup demo help" -f -a "status" -d 'Show what the running agent holds, sends and waits for'
complete -c tidegate -n "__fish_tidegate_using_subcommand help; and not __fish_seen_subcommand_from run check status audit kafka-setup demo help" -f -a "audit" -d 'Read the Kafka topics and check for each buffer that no reading is missing, repeated or out of order'
complete -c tidegate -n "__fish_tidegate_using_subcommand help; and not __fish_seen_subcommand_from run check status audit kafka-setup demo help" -f -a "kafka-setup" -d 'Show what Kafka needs: the watermark topic, rights, cost; compare it with the cluster; create it with --apply'
complete -c tidegate -n "__fish_tidegate_using_subcommand help; and not __fish_seen_subcommand_from run check status audit kafka-setup demo help" -f -a "demo" -d 'Show an outage on this machine, with simulated sensors and a simulated Kafka'
complete -c tidegate -n "__fish_tidegate_using_subcommand help; and not __fish_seen_subcommand_from run check status audit kafka-setup demo help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
