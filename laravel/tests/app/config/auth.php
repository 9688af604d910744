<?php

return [
    'defaults' => ['guard' => 'web', 'passwords' => 'users'],
    'guards' => ['web' => ['driver' => 'header'], 'admin' => ['driver' => 'header-admin']],
    'providers' => [],
    'passwords' => [],
];
