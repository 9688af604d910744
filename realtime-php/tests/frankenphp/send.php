<?php

/**
 * One of the clients that ask a site at the same time: send.php ADDRESS NAME REQUESTS
 *
 * Has each of its requests broadcast `NAME/number`, one after the other; ends with 1 when one was not answered well.
 */

declare(strict_types=1);

[, $address, $name, $requests] = $argv;
for ($i = 0; $i < (int) $requests; $i++) {
    $answer = file_get_contents("http://$address/?text=$name/$i");
    if (!isset(json_decode((string) $answer, true)['served'])) {
        fwrite(STDERR, "$name/$i: " . var_export($answer, true) . implode("\n", $http_response_header ?? []));
        exit(1);
    }
}
